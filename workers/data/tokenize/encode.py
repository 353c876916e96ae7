"""The encoder of data-loading processes: chunks of examples as columns of numbers."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from workers.data.filters.filters import conversation_text, prompt_key, prompts_within
from workers.data.filters.personal_data import find_pii
from workers.data.filters.splits import HashArray, stable_hash
from workers.data.rows.asked import pack_dialogue
from workers.data.rows.examples import (
    Comparison,
    Context,
    Demonstration,
    Document,
    Example,
    PromptExample,
    Rejected,
)
from workers.data.tokenize.data_sets import Rendering, SetKind
from workers.data.tokenize.render import Renderer
from workers.data.tokenize.token_rows import DocumentRow, PromptRow, RankedRow, TokenRow
from workers.data.tokenize.tokenizers import load_speaker
from workers.records.arrays import Ragged

PiiArray = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one data set, in order. R rows; a ranking has K sequences, any other row one."""

    keys: HashArray  # (R,) of the prompt (pretraining: the text)
    users: HashArray  # (R,) 0 = not named
    prefixes: HashArray  # (R,) of the first characters of the prompt; 0 = shorter
    pii: PiiArray  # (R,) index into PII_KINDS; -1 = none found, or not checked
    within: Ragged  # uint64, hashes of `prompts_within`; pretraining: none
    tokens: Ragged  # int32, one row per sequence
    targets: Ragged  # bool, as tokens; demonstrations and comparisons: True = replies
    ranks: Ragged  # int16, comparisons: K per row
    likert: Ragged  # int16, comparisons: K per row, or 0 where they are not rated
    texts: Ragged  # uint8, prompts: UTF-8 as the tokenizer saw it; comparisons: the annotator
    dialogues: Ragged  # uint8, prompts: `pack_dialogue` of each; any other kind: no rows
    kept: Ragged  # uint8, prompts: `pack_columns` of each; any other kind: no rows
    dropped: Counter[str] = field(default_factory=Counter)  # rows by reason
    cut: int = 0  # completions truncated at the token limit


@dataclass(slots=True)
class _Columns:
    """The columns of a chunk under construction."""

    keys: list[int] = field(default_factory=list)
    users: list[int] = field(default_factory=list)
    prefixes: list[int] = field(default_factory=list)
    pii: list[int] = field(default_factory=list)
    within: list[HashArray] = field(default_factory=list)
    tokens: list[npt.NDArray[np.generic]] = field(default_factory=list)
    targets: list[npt.NDArray[np.generic]] = field(default_factory=list)
    ranks: list[Sequence[int]] = field(default_factory=list)
    likert: list[Sequence[int]] = field(default_factory=list)
    texts: list[npt.NDArray[np.generic]] = field(default_factory=list)
    dialogues: list[npt.NDArray[np.generic]] = field(default_factory=list)
    kept: list[npt.NDArray[np.generic]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    cut: int = 0

    def finish(self) -> Chunk:
        return Chunk(
            np.array(self.keys, np.uint64),
            np.array(self.users, np.uint64),
            np.array(self.prefixes, np.uint64),
            np.array(self.pii, np.int8),
            Ragged.from_rows(self.within, np.uint64),
            Ragged.from_rows(self.tokens, np.int32),
            Ragged.from_rows(self.targets, np.bool_),
            Ragged.from_rows(self.ranks, np.int16),
            Ragged.from_rows(self.likert, np.int16),
            Ragged.from_rows(self.texts, np.uint8),
            Ragged.from_rows(self.dialogues, np.uint8),
            Ragged.from_rows(self.kept, np.uint8),
            self.dropped,
            self.cut,
        )


class Encoder:
    """Renders, tokenises and hashes examples; the same in every process."""

    def __init__(self, rendering: Rendering) -> None:
        if not rendering.date:
            rendering = replace(rendering, date=datetime.date.today().isoformat())
        self.tokenizer = load_speaker(
            rendering.checkpoint, rendering.chat_template, rendering.add_bos_token
        )
        self._rendering = rendering
        self._renderer = Renderer(
            self.tokenizer,
            template=rendering.chat_template,
            train_on=rendering.train_on,
            max_prompt_tokens=rendering.max_prompt_tokens,
            max_completion_tokens=rendering.max_completion_tokens,
            date=rendering.date,
        )

    @property
    def date(self) -> str:
        """The date given to the template, where the template uses it; else ""."""
        source = str(self.tokenizer.chat_template or "")
        return self._rendering.date if "strftime_now" in source else ""

    def encode(self, kind: SetKind, examples: Sequence[Example | Rejected]) -> Chunk:
        """The usable examples as columns; the others are counted by reason."""
        columns = _Columns()
        usable: list[Example] = []
        for example in examples:
            if isinstance(example, Rejected):
                columns.dropped[example.reason] += 1
            else:
                usable.append(example)
        if kind is SetKind.demonstrations:
            self._demonstrations(columns, usable)
        elif kind is SetKind.comparisons:
            self._comparisons(columns, usable)
        elif kind is SetKind.pretraining:
            self._documents(columns, usable)
        else:
            self._prompts(columns, usable)
        return columns.finish()

    def _demonstrations(self, columns: _Columns, examples: Sequence[Example]) -> None:
        given = [each for each in examples if isinstance(each, Demonstration)]
        for example, row in zip(given, self._renderer.demonstrations(given), strict=True):
            if isinstance(row, TokenRow):
                self._describe(columns, example.context, row.user, (example.response,))
                columns.tokens.append(row.tokens)
                columns.targets.append(row.targets)
                columns.cut += row.cut
            else:
                columns.dropped[row.reason] += 1

    def _comparisons(self, columns: _Columns, examples: Sequence[Example]) -> None:
        given = [each for each in examples if isinstance(each, Comparison)]
        for example, row in zip(given, self._renderer.comparisons(given), strict=True):
            if isinstance(row, RankedRow):
                self._describe(columns, example.context, row.user, example.completions)
                columns.tokens += [np.append(row.tokens, each) for each in row.completions]
                asked = np.zeros(len(row.tokens), np.bool_)
                columns.targets += [np.append(asked, each >= 0) for each in row.completions]
                columns.ranks.append(row.ranks)
                columns.likert.append(row.likert)
                columns.texts.append(np.frombuffer(row.annotator.encode(), np.uint8))
                columns.cut += row.cut
            else:
                columns.dropped[row.reason] += 1

    def _prompts(self, columns: _Columns, examples: Sequence[Example]) -> None:
        given = [each for each in examples if isinstance(each, PromptExample)]
        for example, row in zip(given, self._renderer.prompts(given), strict=True):
            if isinstance(row, PromptRow):
                self._describe(columns, example.context, row.user)
                columns.tokens.append(row.tokens)
                columns.texts.append(np.frombuffer(row.prompt.encode(), np.uint8))
                packed = pack_dialogue(example.context)
                columns.dialogues.append(np.frombuffer(packed, np.uint8))
                columns.kept.append(np.frombuffer(example.row.encode(), np.uint8))
            else:
                columns.dropped[row.reason] += 1

    def _documents(self, columns: _Columns, examples: Sequence[Example]) -> None:
        given = [each for each in examples if isinstance(each, Document)]
        for example, rows in zip(given, self._renderer.documents(given), strict=True):
            if isinstance(rows, Rejected):
                columns.dropped[rows.reason] += 1
                continue
            windows: list[DocumentRow] = rows
            self._describe(columns, example.text, example.user, asks=False)
            for column in (
                *(columns.keys, columns.users, columns.prefixes, columns.pii, columns.within),
            ):
                column += column[-1:] * (len(windows) - 1)
            columns.tokens += [window.tokens for window in windows]

    def _describe(
        self,
        columns: _Columns,
        context: Context,
        user: str,
        texts: Sequence[str] = (),
        *,
        asks: bool = True,  # False for pretraining text, which has no prompt
    ) -> None:
        """Append to the columns that filters and splits use."""
        columns.keys.append(stable_hash(prompt_key(context)))
        columns.users.append(stable_hash(f"user:{user}") if user else 0)
        size = self._rendering.prefix_characters
        beginning = conversation_text(context)[:size] if size else ""
        columns.prefixes.append(stable_hash(beginning) if size and len(beginning) == size else 0)
        columns.pii.append(self._pii(context, texts))
        within = [stable_hash(key) for key in prompts_within(context)] if asks else []
        columns.within.append(np.array(within, np.uint64))

    def _pii(self, context: Context, texts: Sequence[str]) -> int:
        if not self._rendering.find_pii:
            return -1
        turns = [context] if isinstance(context, str) else [turn.content for turn in context]
        found = (find_pii(text) for text in (*turns, *texts))
        return next((kind for kind in found if kind >= 0), -1)

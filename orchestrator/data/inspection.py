"""Counts, drops, lengths and samples of a data set, collected while its rows are streamed."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Protocol

from workers.data.recognise.rankings_by_fields import TIED, is_tied
from workers.data.recognise.recognise import Noted
from workers.data.rows.examples import (
    Comparison,
    Context,
    Demonstration,
    Document,
    Example,
    PromptExample,
    Rejected,
)
from workers.data.tables.accounts import bounded_reason
from workers.data.tokenize.token_rows import DocumentRow, PromptRow, RankedRow, TokenRow

if TYPE_CHECKING:  # seconds to import, and only a type here
    from transformers import PreTrainedTokenizerBase

    from workers.data.tokenize.render import Renderer

_BATCH_EXAMPLES = 512
_BATCH_CHARACTERS = 2**22


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a sample, and whether it is trained."""

    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """The figures of one usable row."""

    where: str
    prompts: tuple[int, ...]  # lengths
    completions: tuple[int, ...]  # lengths, end tokens included
    pieces: Callable[[], Sequence[Piece]]  # made for the few rows that are shown
    cut: int = 0  # completions that a limit cut
    ranks: tuple[int, ...] = ()


@dataclass(slots=True)
class Inspection:
    """Everything that a report needs; its size does not grow with the data set."""

    kind: str
    unit: str  # of lengths: "tokens" or "characters"
    samples_wanted: int = 3
    read: int = 0
    usable: int = 0
    cut: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    first_drop: dict[str, str] = field(default_factory=dict)  # reason -> where
    prompts: Counter[int] = field(default_factory=Counter)  # length -> how many
    completions: Counter[int] = field(default_factory=Counter)
    options: Counter[int] = field(default_factory=Counter)  # K -> rankings
    pairs: int = 0  # pairs of one ranking that are ranked apart
    tied_pairs: int = 0
    samples: list[Seen] = field(default_factory=list)
    noted: Noted = field(default_factory=Noted)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, row: Seen | Rejected) -> None:
        """Count one row."""
        self.read += 1
        if not isinstance(row, Rejected) and row.ranks and is_tied(row.ranks):
            row = Rejected(TIED, row.where)
        if isinstance(row, Rejected):
            reason = bounded_reason(row.reason, self.drops)
            self.drops[reason] += 1
            self.first_drop.setdefault(reason, row.where)
            return
        self.usable += 1
        self.cut += row.cut
        self.prompts.update(row.prompts)
        self.completions.update(row.completions)
        if row.ranks:
            self.options[len(row.ranks)] += 1
            tied = sum(math.comb(count, 2) for count in Counter(row.ranks).values())
            self.pairs += math.comb(len(row.ranks), 2) - tied
            self.tied_pairs += tied
        self._sample(row)

    def _sample(self, row: Seen) -> None:
        """Keep a uniform sample of all usable rows so far."""
        if len(self.samples) < self.samples_wanted:
            self.samples.append(row)
            return
        place = self._random.randrange(self.usable)
        if place < self.samples_wanted:
            self.samples[place] = row


class Measure(Protocol):
    """Computes the figures of a batch of examples, one result per example."""

    def __call__(self, examples: list[Example], /) -> Iterable[Seen | Rejected]:
        """One result per example."""
        ...


def inspect(
    rows: Iterable[Example | Rejected], inspection: Inspection, measure: Measure, limit: int = 0
) -> Iterator[Inspection]:
    """Count rows, the first `limit` of them or all, and yield after every batch."""
    for batch in _batches(islice(rows, limit) if limit else iter(rows)):
        seen = iter(measure([row for row in batch if not isinstance(row, Rejected)]))
        for row in batch:
            inspection.add(row if isinstance(row, Rejected) else next(seen))
        yield inspection


def measure_characters(examples: list[Example]) -> Iterator[Seen]:
    """Lengths in characters, as no tokenizer is given."""
    for example in examples:
        prompt, replies = _texts(example)
        yield Seen(
            example.where,
            (len(prompt),) if prompt else (),
            tuple(len(reply) for reply in replies),
            partial(_pieces_of_text, prompt, replies),
            ranks=example.ranks if isinstance(example, Comparison) else (),
        )


class MeasureTokens:
    """Lengths in tokens, and samples as the tokenizer decodes them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, renderer: Renderer) -> None:
        self._tokenizer = tokenizer
        self._renderer = renderer

    def __call__(self, examples: list[Example], /) -> Iterator[Seen | Rejected]:
        """One result per example."""
        if not examples:
            return
        # all examples of a data set are of one kind
        first, render = examples[0], self._renderer
        if isinstance(first, Demonstration):
            rows = render.demonstrations([e for e in examples if isinstance(e, Demonstration)])
        elif isinstance(first, Comparison):
            rows = render.comparisons([e for e in examples if isinstance(e, Comparison)])
        elif isinstance(first, PromptExample):
            rows = render.prompts([e for e in examples if isinstance(e, PromptExample)])
        else:
            rows = render.documents([e for e in examples if isinstance(e, Document)])
        for row in rows:
            yield row if isinstance(row, Rejected) else self._seen(row)

    def _seen(self, row: TokenRow | RankedRow | PromptRow | list[DocumentRow]) -> Seen:
        pieces = partial(self._pieces, row)
        if isinstance(row, TokenRow):
            targets = int(row.targets.sum())
            return Seen(row.where, (len(row.tokens) - targets,), (targets,), pieces, int(row.cut))
        if isinstance(row, RankedRow):
            lengths = tuple(len(each) for each in row.completions)
            return Seen(row.where, (len(row.tokens),), lengths, pieces, row.cut, row.ranks)
        if isinstance(row, PromptRow):
            return Seen(row.where, (len(row.tokens),), (), pieces)
        return Seen(row[0].where, (), (sum(len(each.tokens) for each in row),), pieces)

    def _pieces(self, row: TokenRow | RankedRow | PromptRow | list[DocumentRow]) -> list[Piece]:
        if isinstance(row, TokenRow):
            edges = [0, *((row.targets[1:] != row.targets[:-1]).nonzero()[0] + 1), len(row.tokens)]
            return [
                Piece(self._text(row.tokens[a:b]), trained=bool(row.targets[a]))
                for a, b in pairwise(edges)
            ]
        if isinstance(row, list):
            return [Piece(self._text(each.tokens), trained=True) for each in row]
        replies = row.completions if isinstance(row, RankedRow) else ()
        return [
            Piece(self._text(row.tokens), trained=False),
            *(Piece(self._text(each), trained=True) for each in replies),
        ]

    def _text(self, ids: Iterable[int]) -> str:
        text = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)
        assert isinstance(text, str)
        return text


def quantile(lengths: Counter[int], share: float) -> int:
    """The smallest length that at least `share` of all rows do not exceed."""
    need = share * lengths.total()
    count = 0
    for length in sorted(lengths):
        count += lengths[length]
        if count >= need:
            return length
    return 0


def buckets(lengths: Counter[int]) -> list[tuple[int, int, int]]:
    """Histogram in powers of two: (first length, last length, how many)."""
    counts: Counter[int] = Counter()
    for length, count in lengths.items():
        counts[length.bit_length()] += count
    if not counts:
        return []
    return [
        (1 << (bits - 1) if bits else 0, (1 << bits) - 1, counts[bits])
        for bits in range(min(counts), max(counts) + 1)
    ]


def _batches(rows: Iterator[Example | Rejected]) -> Iterator[list[Example | Rejected]]:
    batch: list[Example | Rejected] = []
    characters = 0
    for row in rows:
        batch.append(row)
        if not isinstance(row, Rejected):
            prompt, replies = _texts(row)
            characters += len(prompt) + sum(map(len, replies))
        if len(batch) == _BATCH_EXAMPLES or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _texts(example: Example) -> tuple[str, tuple[str, ...]]:
    """The context, and the trained part."""
    if isinstance(example, Document):
        return "", (example.text,)
    prompt = _plain(example.context)
    if isinstance(example, Demonstration):
        return prompt, (example.response,)
    return prompt, example.completions if isinstance(example, Comparison) else ()


def _pieces_of_text(prompt: str, replies: Sequence[str]) -> list[Piece]:
    before = [Piece(prompt, trained=False)] if prompt else []
    return [*before, *(Piece(reply, trained=True) for reply in replies)]


def _plain(context: Context) -> str:
    if isinstance(context, str):
        return context
    return "".join(f"[{turn.role}] {turn.content}\n" for turn in context)

"""Turn examples into token rows: bare text unchanged, dialogues by a chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from workers.data.rows.dialogues import replies_of
from workers.data.rows.examples import (
    Comparison,
    Context,
    Demonstration,
    Document,
    Example,
    Message,
    PromptExample,
    Rejected,
)
from workers.data.rows.ties import tied_ranks
from workers.data.rows.unusable import UNTRAINED, Unusable
from workers.data.tokenize.beginnings import beginning
from workers.data.tokenize.templates import ChatTemplate, ControlTokens
from workers.data.tokenize.time_limit import ItemTooCostlyError, watched
from workers.data.tokenize.token_rows import DocumentRow, PromptRow, RankedRow, TokenRow
from workers.data.tokenize.tokenizers import detokenize
from workers.errors import DataError

if TYPE_CHECKING:  # seconds to import, and only a type here
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["last", "all"]
_BATCH = 1024  # texts per call of the tokenizer
_Some = TypeVar("_Some", bound=Example)
_Plan = TypeVar("_Plan")
_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class _Turn:
    """A reply and all text before it."""

    prompt: str
    reply: str  # without its end token
    bare: bool  # not rendered by a template: the beginning tokens are missing
    trained: bool = True  # False: the row marks this reply as not to be trained
    tail: str = ""  # the end of the prompt, together with which the reply is tokenized


class Renderer:
    """Turns examples into token rows; each public method returns one result per example, in order.

    Bare text: the tokens that the tokenizer adds before a text by default, the prompt, the
    completion and the end token. Dialogues: the dialogue as rendered by the chat template up to the
    assistant's turn, with exactly the tokens that the engine gets when it samples; then the reply
    and its end token. Text that the template writes after the end token is left out. The reply is
    tokenized together with the end of the prompt, or alone if a token would span both.

    Content in which the tokenizer would find a control token is rejected, in bare text as well
    (except for one beginning token at its start).

    Args:
        tokenizer: Must have an end-of-sequence token.
        template: "auto" = the tokenizer's chat template, "default" = the built-in one for base
            models, else the path of a Jinja file. Only dialogues need one.
        train_on: "last" = the last assistant turn is the target; "all" = every assistant turn.
        max_prompt_tokens: Rows with a longer prompt are rejected.
        max_completion_tokens: Longer completions are truncated and get no end token. With
            `train_on` "all", a dialogue is truncated at the sum of both limits.
        date: The date given to templates, in ISO format; "" = now.

    Raises:
        DataError: If the template cannot be read. The methods raise it if a dialogue has no
            template, or if the template does not fit the tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: str = "auto",
        train_on: TrainOn = "last",
        max_prompt_tokens: int,
        max_completion_tokens: int,
        date: str = "",
    ) -> None:
        assert isinstance(tokenizer.eos_token_id, int), "load_tokenizer refuses one without"
        self._tokenizer = tokenizer
        self._eos = tokenizer.eos_token_id
        self._beginning = list(beginning(tokenizer))
        self._control = ControlTokens(tokenizer)
        self._template = ChatTemplate(tokenizer, template, self._control, date)
        self._train_on = train_on
        self._max_prompt = max_prompt_tokens
        self._max_completion = max_completion_tokens

    def demonstrations(self, examples: Sequence[Demonstration]) -> list[TokenRow | Rejected]:
        """Prompt then response; targets are the response and its end token."""
        planned = _tried(examples, self._plan)
        ids = self._encode(t for p in planned if isinstance(p, list) for t in _texts(p))

        def row(example: Demonstration, turns: list[_Turn]) -> TokenRow:
            tokens, targets, cut = self._joined(turns, ids)
            return TokenRow(
                np.array(tokens, np.int64),
                np.array(targets, bool),
                turns[0].prompt,
                example.where,
                cut,
                example.user,
                example.source,
            )

        return _finished(examples, planned, row)

    def comparisons(self, examples: Sequence[Comparison]) -> list[RankedRow | Rejected]:
        """A prompt and its K completions, each with its end token unless truncated.

        Completions whose tokens are equal tie, even if their ranks differ. Those that were sampled
        keep their tokens, as text could be tokenized differently.

        Raises:
            DataError: the sampled tokens are those of another tokenizer.
        """

        def plan(example: Comparison) -> list[_Turn]:
            prompt = self._prompt_text(example.context)
            return [self._turn(example.context, prompt, reply) for reply in example.completions]

        planned = _tried(examples, plan)
        ids = self._encode(t for p in planned if isinstance(p, list) for t in _texts(p))

        def row(example: Comparison, turns: list[_Turn]) -> RankedRow:
            prompt = self._checked_prompt(turns[0].prompt, turns[0].bare, ids)
            if example.tokens:
                replies = [self._sampled(example, i) for i in range(len(turns))]
            else:
                replies = [self._ended(self._reply(turn, prompt, ids)) for turn in turns]
            ranks = tied_ranks([reply for reply, _ in replies], example.ranks)
            if len(set(ranks)) == 1 < len(set(example.ranks)):
                raise Unusable("completions do not differ within the token limit")
            return RankedRow(
                np.array(prompt, np.int64),
                tuple(np.array(reply, np.int64) for reply, _ in replies),
                ranks,
                turns[0].prompt,
                example.where,
                sum(cut for _, cut in replies),
                example.user,
                example.source,
                example.annotator,
                example.likert,
            )

        return _finished(examples, planned, row)

    def prompts(self, examples: Sequence[PromptExample]) -> list[PromptRow | Rejected]:
        """Prompts as the engine sees them."""
        planned = _tried(examples, lambda example: self._prompt_text(example.context))
        ids = self._encode(text for text in planned if isinstance(text, str))

        def row(example: PromptExample, text: str) -> PromptRow:
            tokens = self._checked_prompt(text, isinstance(example.context, str), ids)
            return PromptRow(
                np.array(tokens, np.int64), text, example.where, example.user, example.source
            )

        return _finished(examples, planned, row)

    def documents(self, examples: Sequence[Document]) -> list[list[DocumentRow] | Rejected]:
        """Windows of at most the sum of both limits; the last one ends with the end token."""
        planned = _tried(examples, lambda example: self._plain(example.text))
        ids = self._encode(text for text in planned if isinstance(text, str))
        window = self._max_prompt + self._max_completion

        def rows(example: Document, text: str) -> list[DocumentRow]:
            if not ids[text]:  # some tokenizers drop characters
                raise Unusable("empty text")
            tokens = np.array([*self._begun(text, ids), self._eos], np.int64)
            # a last window of one token is dropped: its first token is never a target
            return [
                DocumentRow(
                    tokens[i : i + window], text, example.where, example.user, example.source
                )
                for i in range(0, len(tokens) - 1, window)
            ]

        return _finished(examples, planned, rows)

    def _plan(self, example: Demonstration) -> list[_Turn]:
        context = example.context
        if isinstance(context, tuple) and self._train_on == "all":
            dialogue = (*context, Message("assistant", example.response, example.trained))
            trained = [turn.trained for turn in replies_of(dialogue)]
            if not any(trained):
                raise Unusable(UNTRAINED)
            turns = [self._rendered(*turn) for turn in self._template.turns(dialogue)]
            return [replace(turn, trained=on) for turn, on in zip(turns, trained, strict=True)]
        if not example.trained:
            raise Unusable(UNTRAINED)
        return [self._turn(context, self._prompt_text(context), example.response)]

    def _prompt_text(self, context: Context) -> str:
        return self._plain(context) if isinstance(context, str) else self._template.prompt(context)

    def _plain(self, text: str) -> str:
        """Bare text, which must not spell control tokens."""
        if not text.strip():
            raise Unusable("empty prompt")
        if self._control.in_text(text.removeprefix(str(self._tokenizer.bos_token or ""))):
            raise Unusable("holds a control token")
        return text

    def _turn(self, context: Context, prompt: str, reply: str) -> _Turn:
        if isinstance(context, tuple):
            return self._rendered(prompt, self._template.reply(context, prompt, reply))
        if self._control.in_text(reply):
            raise Unusable("holds a control token")
        return _Turn(prompt, reply, bare=True)

    def _rendered(self, prompt: str, reply: str) -> _Turn:
        return _Turn(prompt, reply, bare=False, tail=self._control.tail(prompt))

    def _joined(
        self, turns: list[_Turn], ids: dict[str, list[int]]
    ) -> tuple[list[int], list[bool], bool]:
        """Tokens, targets, and whether they were truncated."""
        row: list[int] = []
        targets: list[bool] = []
        for turn in turns:
            prompt = ids[turn.prompt] if row else self._checked_prompt(turn.prompt, turn.bare, ids)
            if prompt[: len(row)] != row:
                raise Unusable("turns do not tokenize one by one")
            reply = self._reply(turn, prompt, ids)
            if len(turns) == 1:
                reply, cut = self._ended(reply)
                return prompt + reply, [False] * len(prompt) + [True] * len(reply), cut
            targets += [False] * (len(prompt) - len(row)) + [turn.trained] * (len(reply) + 1)
            row = [*prompt, *reply, self._eos]
        limit = self._max_prompt + self._max_completion
        if not any(targets[:limit]):
            raise Unusable("no trained turn within the token limit")
        return row[:limit], targets[:limit], len(row) > limit

    def _checked_prompt(self, text: str, bare: bool, ids: dict[str, list[int]]) -> list[int]:
        tokens = self._begun(text, ids) if bare else ids[text]
        if not tokens:  # some tokenizers drop characters
            raise Unusable("empty prompt")
        if not self._control.agree(text, ids[text]):
            raise Unusable("holds a control token")
        if len(tokens) > self._max_prompt:
            raise Unusable(f"prompt over {self._max_prompt} tokens")
        return tokens

    def _begun(self, text: str, ids: dict[str, list[int]]) -> list[int]:
        """Bare text after the beginning tokens, which are added unless it starts with them."""
        tokens = ids[text]
        if tokens[: len(self._beginning)] == self._beginning:
            return tokens
        return [*self._beginning, *tokens]

    def _reply(self, turn: _Turn, prompt: list[int], ids: dict[str, list[int]]) -> list[int]:
        if turn.bare:
            reply = ids[turn.reply]
        else:
            before, whole = ids[turn.tail], ids[turn.tail + turn.reply]
            in_place = whole[: len(before)] == before == prompt[len(prompt) - len(before) :]
            reply = whole[len(before) :] if in_place else self._encode([turn.reply])[turn.reply]
        if not reply:
            raise Unusable("empty completion")
        if not self._control.agree(turn.reply, reply):
            raise Unusable("holds a control token")
        return reply

    def _sampled(self, example: Comparison, number: int) -> tuple[list[int], bool]:
        ids = list(example.tokens[number])
        known = max(ids, default=0) < len(self._tokenizer)
        if not ids or not known or detokenize(self._tokenizer, ids) != example.completions[number]:
            raise DataError(
                f'"completion_tokens[{number}]" are not the tokens of its text under this '
                "tokenizer",
                where=example.where,
                fix="give a model with the tokenizer that sampled them, or leave the column "
                "completion_tokens out",
            )
        return ids[: self._max_completion], len(ids) > self._max_completion

    def _ended(self, reply: list[int]) -> tuple[list[int], bool]:
        # The end token counts towards the limit, as it does when a response is sampled.
        if len(reply) < self._max_completion:
            return [*reply, self._eos], False
        return reply[: self._max_completion], True

    def _encode(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Ids of each distinct text, without added special tokens."""
        distinct = list(dict.fromkeys(texts))
        ids: dict[str, list[int]] = {}
        for first in range(0, len(distinct), _BATCH):
            part = distinct[first : first + _BATCH]
            encoded = self._tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
            ids.update(zip(part, encoded, strict=True))
        return ids


def _texts(turns: list[_Turn]) -> Iterable[str]:
    for turn in turns:
        yield turn.prompt
        if turn.bare:
            yield turn.reply
        else:
            yield turn.tail
            yield turn.tail + turn.reply


def _tried(examples: Sequence[_Some], plan: Callable[[_Some], _Row]) -> list[_Row | Rejected]:
    """The plan of each example, or why there is none."""

    def tried(example: _Some) -> _Row | Rejected:
        try:
            return plan(example)
        except Unusable as unusable:
            return Rejected(str(unusable), example.where, example.source)

    try:
        return watched(tried, examples)
    except ItemTooCostlyError as error:
        raise DataError(
            f"the chat template took {error.what} to render one dialogue",
            where=examples[error.place].where,
            fix="choose another template (data.chat_template=default, or the path of a Jinja "
            "file), or leave the row out",
        ) from error


def _finished(
    examples: Sequence[_Some],
    planned: Sequence[_Plan | Rejected],
    finish: Callable[[_Some, _Plan], _Row],
) -> list[_Row | Rejected]:
    """The row of each planned example, or why there is none."""
    rows: list[_Row | Rejected] = []
    for example, plan in zip(examples, planned, strict=True):
        if isinstance(plan, Rejected):
            rows.append(plan)
            continue
        try:
            rows.append(finish(example, plan))
        except Unusable as unusable:
            rows.append(Rejected(str(unusable), example.where, example.source))
    return rows

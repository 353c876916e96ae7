"""A reward model outside of a run: the scorer of the source `model`, on texts of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from workers.data.rows.asked import Asked
from workers.data.rows.examples import Context, Message
from workers.data.tokenize.tokenizers import load_tokenizer
from workers.records.arrays import Ragged
from workers.records.generation import Finish, RolloutBatch
from workers.records.specs import FrozenModelSpec, RewardSpec, TermSpec
from workers.scorers.source import Batch, make_scorer, scores_of
from workers.scorers.text_bridge import TextBridge
from workers.user_functions.reward_function import Exchange

_ROLES = ("system", "user", "assistant")


class RefusedError(ValueError):
    """A request cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one sequence, or why there is none."""

    value: float
    reason: str = ""


Item = Exchange | str  # a prompt and its response, or the whole sequence as it was rendered


class ServedModel:
    """A reward model in this process; one thread may call it.

    An exchange becomes tokens as with `reward.bridge=text`: dialogues by the model's own chat
    template, bare text unchanged. A whole sequence is tokenized as it is, control tokens included,
    and ends with the end token.

    Args:
        spec: The model.

    Raises:
        RehearsalError: the folder holds no complete reward model.
    """

    def __init__(self, spec: FrozenModelSpec) -> None:
        term = TermSpec("model", {"bridge": "tokens"})
        self._scorer, _ = make_scorer(RewardSpec((term,), "", spec.checkpoint, spec), term)
        self._tokenizer = load_tokenizer(spec.checkpoint)
        self._bridge = TextBridge(self._tokenizer)

    def scores(self, items: Sequence[Item]) -> list[Score]:
        """One score or reason per item, in order."""
        rows, reasons = self._rows(items)
        found = scores_of(self._scorer, Batch(_rollouts(rows), ()), "model")
        said = [mine or its for mine, its in zip(reasons, found.reasons, strict=True)]
        return [Score(v, r) for v, r in zip(found.values.tolist(), said, strict=True)]

    def _rows(self, items: Sequence[Item]) -> tuple[list[Sequence[int]], list[str]]:
        exchanges = [each for each in items if isinstance(each, Exchange)]
        bridged, why = self._bridge(exchanges)
        places = iter(range(len(exchanges)))
        rows: list[Sequence[int]] = []
        reasons: list[str] = []
        for each in items:
            if isinstance(each, str):
                rows.append(self._whole(each))
                reasons.append("")
            else:
                place = next(places)
                rows.append(bridged.row(place).tolist())
                reasons.append(why[place])
        return rows, reasons

    def _whole(self, text: str) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        found = [int(i) for i in cast("list[int]", ids)]
        end = cast("int", self._tokenizer.eos_token_id)
        return found if found[-1:] == [end] else [*found, end]


def plain_exchanges(body: Any) -> list[Exchange]:
    """The exchanges of a request of the protocol `plain` (docs/rewards.md).

    `messages` and `finished` may be left out: prompts are then bare text, and responses ended.

    Raises:
        RefusedError: the request has another form.
    """
    if not isinstance(body, dict):
        raise RefusedError("the body must be an object")
    responses = _texts(body, "responses")
    prompts = _texts(body, "prompts", len(responses))
    messages = _listed(body, "messages", len(responses), None)
    finished = _listed(body, "finished", len(responses), True)
    return [
        Exchange(Asked(n, _context(prompt, dialogue, n), prompt), response, _flag(ended, n))
        for n, (prompt, response, dialogue, ended) in enumerate(
            zip(prompts, responses, messages, finished, strict=True)
        )
    ]


def queries(body: Any) -> list[str]:
    """The sequences of a request of the protocol `openrlhf`: prompt and response as one text.

    Raises:
        RefusedError: the request has another form.
    """
    if not isinstance(body, dict):
        raise RefusedError("the body must be an object")
    return _texts(body, "query")


def _texts(body: dict[str, Any], name: str, count: int | None = None) -> list[str]:
    values = body.get(name)
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise RefusedError(f"{name} must be a list of texts")
    if count is not None and len(values) != count:
        raise RefusedError(f"{name} has {len(values)} entries for {count} responses")
    return values


def _listed(body: dict[str, Any], name: str, count: int, default: object) -> list[Any]:
    values = body.get(name)
    if values is None:
        return [default] * count
    if not isinstance(values, list) or len(values) != count:
        raise RefusedError(f"{name} must be a list of {count} entries")
    return values


def _context(prompt: str, dialogue: object, n: int) -> Context:
    if dialogue is None:
        return prompt
    if not isinstance(dialogue, list) or not dialogue:
        raise RefusedError(f"messages[{n}] must be a list of turns, or null for bare text")
    turns: list[Message] = []
    for turn in dialogue:
        fits = isinstance(turn, dict) and turn.get("role") in _ROLES
        if not fits or not isinstance(turn.get("content"), str):
            raise RefusedError(f"messages[{n}] holds something else than role and content")
        turns.append(Message(turn["role"], turn["content"]))
    return tuple(turns)


def _flag(value: object, n: int) -> bool:
    if not isinstance(value, bool):
        raise RefusedError(f"finished[{n}] must be true or false")
    return value


def _rollouts(rows: Sequence[Sequence[int]]) -> RolloutBatch:
    """Token rows as the source `model` reads them."""
    count = len(rows)
    zeros = np.zeros(count, np.int64)
    return RolloutBatch(
        ids=np.arange(count),
        prompt_ids=zeros,
        tokens=Ragged.from_rows(rows, np.int32),
        prompt_lengths=zeros,
        logprobs=Ragged.from_rows([()] * count, np.float32),
        finish=np.full(count, Finish.STOP, np.int64),
        versions=np.zeros((count, 2), np.int64),
    )

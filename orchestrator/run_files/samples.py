"""Sampled texts for users: rollouts, and responses of all models to the same prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os.path import lexists
from pathlib import Path
from typing import Any

from orchestrator.run_files.damage import Damage, require_list, verified
from orchestrator.run_files.folder import RunFolder, append_lines, write_json, write_text
from workers.data.rows.asked import as_messages
from workers.data.rows.examples import Context, Message
from workers.errors import DataError


@dataclass(frozen=True, slots=True)
class RolloutSample:
    """One sampled response of an iteration: trained on, or dropped with a reason."""

    stage: str
    step: int
    id: int
    prompt: str
    response: str
    score: float  # reward units, before the KL penalty; NaN without a reward
    kl: float  # nats, whole sequence; NaN if it was not measured
    finish: str  # "stop" | "length" | "abort"
    policy_version: int
    tokens: int | None = None  # of the response; None: an earlier version did not record it
    dropped: str = ""  # why it was not trained on; "" = it was
    # term of the reward -> value before its weight, None = it failed; {} without terms
    terms: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answered:
    """One prompt of the evaluation with the answer of every model."""

    id: int
    prompt: Context
    answers: dict[str, str]  # model -> text


@dataclass(frozen=True, slots=True)
class Comparison:
    """The responses of several models to one held-out prompt."""

    prompt: str
    responses: dict[str, str]  # model, or what else it is -> text
    gold: dict[str, float] = field(default_factory=dict)  # model -> noise-free score, if any
    # name in `responses` -> score of the reward model, reward units, if any
    scores: dict[str, float] = field(default_factory=dict)


def append_rollouts(folder: RunFolder, samples: Sequence[RolloutSample]) -> None:
    """Append samples to samples/rollouts.jsonl."""
    append_lines(folder.rollouts, map(asdict, samples), "a sample")


def read_rollouts(folder: RunFolder, damage: Damage | None = None) -> list[RolloutSample]:
    """All samples of samples/rollouts.jsonl; empty if PPO did not run.

    Args:
        folder: The run folder.
        damage: Collects notes on lines that cannot be used.

    Raises:
        DataError: a line cannot be used, and `damage` is None.
    """
    path = folder.rollouts
    found = damage or Damage()
    samples = list(found.lines(path, rollout_of)) if lexists(path) else []
    if damage is None:
        _require_whole(found, path)
    return samples


def rollout_of(fields: Any) -> RolloutSample:
    """The sample in a line of samples/rollouts.jsonl, after JSON has been read.

    Raises:
        ValueError, TypeError: it is no sample.
    """
    return verified(RolloutSample(**fields), finite=False)


def write_comparisons(folder: RunFolder, comparisons: Sequence[Comparison]) -> None:
    """Write samples/comparison.json."""
    write_json(folder.samples / "comparison.json", [asdict(c) for c in comparisons])


def add_comparisons(folder: RunFolder, comparisons: Sequence[Comparison]) -> None:
    """Add to samples/comparison.json; one of the same prompt and names is replaced."""
    mine = {(c.prompt, *c.responses) for c in comparisons}
    others = [c for c in read_comparisons(folder, Damage()) if (c.prompt, *c.responses) not in mine]
    write_comparisons(folder, [*others, *comparisons])


def write_answers(
    folder: RunFolder, prompts: Sequence[Context], answers: Mapping[str, Sequence[str]]
) -> None:
    """Write samples/answers.jsonl: every prompt of the evaluation with the answer of each model.

    Args:
        folder: The run folder.
        prompts: In order; a dialogue is written as messages.
        answers: Model -> texts, in the order of the prompts.
    """
    rows = (
        {"id": n, **asked_fields(prompt), "answers": {m: texts[n] for m, texts in answers.items()}}
        for n, prompt in enumerate(prompts)
    )
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(folder.samples / "answers.jsonl", text)


def answered_of(fields: Any) -> Answered:
    """The prompt and answers in a line of samples/answers.jsonl, after JSON has been read.

    Raises:
        ValueError, TypeError, KeyError: it is no such line.
    """
    if not isinstance(fields, dict):
        raise TypeError("a line must be an object")
    prompt: Context = fields["prompt"] if "messages" not in fields else ""
    made = verified(Answered(fields["id"], prompt, fields["answers"]))  # type: ignore[arg-type]
    if "messages" not in fields:
        return made
    turns = tuple(verified(Message(**turn)) for turn in require_list(fields["messages"]))
    return replace(made, prompt=turns)


def read_answers(path: Path) -> list[Answered]:
    """All lines of a samples/answers.jsonl.

    Raises:
        DataError: the file cannot be read, or a line cannot be used.
    """
    damage = Damage()
    found = list(damage.lines(path, answered_of))
    _require_whole(damage, path)
    return found


def asked_fields(prompt: Context) -> dict[str, object]:
    """The field of a JSON line that holds a prompt: `prompt`, or `messages` for a dialogue."""
    return {"prompt": prompt} if isinstance(prompt, str) else {"messages": as_messages(prompt)}


def _compared(item: dict[str, Any]) -> Comparison:
    made = verified(Comparison(**item))
    for kind, found in (("gold score", made.gold), ("score", made.scores)):
        if unanswered := sorted(found.keys() - made.responses.keys()):
            raise ValueError(f"a {kind} of {unanswered[0]!r}, which has no response")
    return made


def read_comparisons(folder: RunFolder, damage: Damage | None = None) -> list[Comparison]:
    """The comparisons of samples/comparison.json; empty if no stage has written any.

    Args:
        folder: The run folder.
        damage: Collects notes on entries that cannot be used.

    Raises:
        DataError: an entry cannot be used, and `damage` is None.
    """
    path = folder.samples / "comparison.json"
    if not lexists(path):
        return []
    found = damage or Damage()
    text = found.text(path)
    items = (
        found.part(path, "it", lambda: require_list(json.loads(text)), [])
        if text is not None
        else []
    )
    made = [
        found.part(path, f"entry {number}", lambda item=item: _compared(item), None)
        for number, item in enumerate(items, start=1)
    ]
    if damage is None:
        _require_whole(found, path)
    return [comparison for comparison in made if comparison is not None]


def _require_whole(damage: Damage, path: Path) -> None:
    if notes := damage.notes():
        raise DataError(
            f"not what a run writes: {notes[0]}", where=str(path), fix="remove what is damaged"
        )

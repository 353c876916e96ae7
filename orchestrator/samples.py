"""Sampled texts kept for people: rollouts while PPO learns, and models side by side at the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from orchestrator.run_folder import RunFolder, append_lines, write_json


@dataclass(frozen=True, slots=True)
class RolloutSample:
    """One sampled response of a PPO iteration."""

    stage: str
    step: int
    id: int
    prompt: str
    response: str
    score: float  # reward units, before the KL penalty
    kl: float  # nats, whole sequence
    finish: str  # "stop" | "length" | "abort"
    policy_version: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """The responses of several models to one held-out prompt."""

    prompt: str
    responses: dict[str, str]  # model -> text
    gold: dict[str, float] = field(default_factory=dict)  # model -> noise-free score, if there is


def append_rollouts(folder: RunFolder, samples: Sequence[RolloutSample]) -> None:
    """Add samples to samples/rollouts.jsonl."""
    append_lines(folder.rollouts, map(asdict, samples), "a sample")


def read_rollouts(folder: RunFolder) -> list[RolloutSample]:
    """All samples of samples/rollouts.jsonl; none if PPO did not run."""
    path = folder.rollouts
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # What follows the last newline is empty, or the torn line of a killed run.
    return [RolloutSample(**json.loads(line)) for line in lines[:-1]]


def write_comparisons(folder: RunFolder, comparisons: Sequence[Comparison]) -> None:
    """Write samples/comparison.json."""
    write_json(folder.samples / "comparison.json", [asdict(c) for c in comparisons])


def read_comparisons(folder: RunFolder) -> list[Comparison]:
    """The comparisons of samples/comparison.json; none if the run did not evaluate."""
    path = folder.samples / "comparison.json"
    if not path.exists():
        return []
    return [Comparison(**item) for item in json.loads(path.read_text(encoding="utf-8"))]

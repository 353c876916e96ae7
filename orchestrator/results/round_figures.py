"""Rounds of labels, reward model and policy: what each of them reached."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.results.reward_model_figures import PairAccuracy
from orchestrator.run_files.damage import whole


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """One round: a run of the stage label, and what learned from it. None = not measured."""

    label: str  # names of the stage runs
    reward_model: str  # "" = none
    policy: str  # "" = none
    rankings: int | None = None  # to train on, of this round
    pairs: int | None = None  # ordered pairs of these
    before: PairAccuracy | None = None  # of the reward model before, on this round's held-out pairs
    after: PairAccuracy | None = None  # of this round's reward model, on the same pairs
    gold: float | None = None  # noise-free score of the policy's answers in the evaluation
    reward: float | None = None  # score by its reward model in the policy's last iteration
    kl: float | None = None  # nats per sequence to the reference, in the same iteration


def round_to_json(found: RoundFigures) -> dict[str, object]:
    """As plain JSON values."""
    return asdict(found)


def round_from_json(data: dict[str, Any]) -> RoundFigures:
    """The inverse of `round_to_json`.

    Raises:
        ValueError, TypeError, KeyError: it is no such object.
    """
    pairs = {
        key: whole(PairAccuracy, data[key]) if data[key] is not None else None
        for key in ("before", "after")
    }
    return whole(RoundFigures, data | pairs)

"""How many more right answers a policy with an environment gives than one without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.run_files.damage import verified


@dataclass(frozen=True, slots=True)
class Gain:
    """Difference of the fractions of right answers of two models to the same prompts."""

    model: str  # with an environment
    over: str  # without
    difference: float
    low: float  # 95 % interval, paired by prompt
    high: float
    n: int  # prompts

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "model": self.model,
            "over": self.over,
            "difference": self.difference,
            "ci95": [self.low, self.high],
            "n": self.n,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Gain:
        """What `to_json` gave."""
        low, high = data["ci95"]
        return verified(cls(data["model"], data["over"], data["difference"], low, high, data["n"]))


def gain(model: str, over: str, mine: Sequence[bool], others: Sequence[bool]) -> Gain:
    """The gain of one model over another.

    Right answers of one alone are wins and losses of a comparison with ties, whose margin is the
    difference (Tango's interval for paired proportions, `intervals.preference`).

    Args:
        model: The model with an environment.
        over: The one without.
        mine: (n,) whether each answer of the first is right.
        others: (n,) the same of the second, for the same prompts.
    """
    from orchestrator.results.intervals import preference  # numpy, which pages must not import

    found = preference([0.5 + 0.5 * (a - b) for a, b in zip(mine, others, strict=True)])
    low, middle, high = (2 * each - 1 for each in (found.low, found.rate, found.high))
    return Gain(model, over, middle, low, high, found.n)

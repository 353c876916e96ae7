"""Settings of the stage overoptimization: proxies are optimised, a gold score is measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.config.evaluation import MOST_SAMPLES
from orchestrator.config.ranges import between, positive
from workers.errors import ConfigError


class GoldJudge(Enum):
    """What gives the gold score."""

    labeler = "labeler"
    """The noise-free labeler of the pocket world."""
    reward_model = "reward_model"
    """The reward model in model.checkpoints.gold. It also ranks sampled answers for the proxies,
    unless rankings are given, and scores held-out answers while a policy learns."""


@dataclass(slots=True, kw_only=True)
class OveroptimizationConfig:
    """How the proxies of the run (its reward models) and the policies of the run are measured."""

    gold: GoldJudge = GoldJudge.labeler
    """What gives the gold score."""
    prompts: int = positive(64)
    """Held-out prompts that the SFT model answers."""
    samples: int = between(2, 512, MOST_SAMPLES)
    """Answers per prompt; all proxies choose among the same ones."""
    best_of: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64, 128, 256])
    """The n of the best of n; above half of `samples` the variance is high."""
    resamples: int = between(100, 1000, 100_000)
    """Bootstrap samples for the intervals."""

    def check(self, key: str) -> None:
        """Check the numbers of `best_of`."""
        if not self.best_of or not all(1 <= n <= self.samples for n in self.best_of):
            raise ConfigError(
                f"best_of={self.best_of} of {self.samples} samples per prompt",
                where=f"{key}.best_of",
                fix=f"give numbers from 1 to {key}.samples",
            )

    @property
    def numbers(self) -> tuple[int, ...]:
        """The n in ascending order, 1 included."""
        return tuple(sorted({1, *self.best_of}))

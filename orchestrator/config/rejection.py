"""Settings of the stage rejection_sampling: a policy trained on its own best samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from orchestrator.config.engines import OptimizerConfig, Schedule
from orchestrator.config.ranges import any_number, at_least, positive
from workers.errors import ConfigError


class Keep(Enum):
    """The samples of a prompt that are trained on."""

    best = "best"
    """The one with the highest score; of equal ones the first that was sampled."""
    above = "above"
    """All that score above `threshold`."""


class Start(Enum):
    """The weights that an iteration trains."""

    current = "current"
    """Those of the iteration before."""
    sft = "sft"
    """Those of the SFT model, by a new optimizer."""


@dataclass(slots=True, kw_only=True)
class RejectionConfig:
    """Rejection sampling fine-tuning (Llama 2, RAFT)."""

    iterations: int = positive(4)
    """Batches to sample and train on."""
    prompts_per_iteration: int = positive(512)
    """Prompts per batch."""
    samples: int = at_least(2, 16)
    """Samples per prompt."""
    temperatures: list[float] = field(default_factory=lambda: [1.0])
    """Temperatures of sampling; the samples of a prompt are divided equally among them."""
    keep: Keep = Keep.best
    """The samples that are trained on."""
    threshold: float = any_number(0.0)
    """Score that samples must exceed, in reward units (keep: above)."""
    from_all_iterations: bool = True
    """Samples kept in earlier iterations are trained on again."""
    start: Start = Start.current
    """The weights that an iteration trains."""
    epochs: int = positive(1)
    """Passes over the kept samples per iteration."""
    sequences_per_step: int = positive(32)
    """Samples per optimizer step; the last step of a pass may have fewer."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=3e-4, schedule=Schedule.constant, warmup_steps=10
        )
    )
    """AdamW and its schedule."""

    def check(self, key: str) -> None:
        """Check the temperatures, and that a threshold is used."""
        good = all(math.isfinite(t) and t > 0 for t in self.temperatures)
        if not self.temperatures or not good:
            raise ConfigError(
                f"temperatures={self.temperatures}",
                where=f"{key}.temperatures",
                fix="give numbers above 0",
            )
        if self.samples % len(self.temperatures):
            raise ConfigError(
                f"{self.samples} samples cannot be divided equally among "
                f"{len(self.temperatures)} temperatures",
                where=f"{key}.samples",
                fix=f"set it to a multiple of {len(self.temperatures)}",
            )
        if self.threshold and self.keep is not Keep.above:
            raise ConfigError(
                f"threshold={self.threshold:g}, and only keep=above has a threshold",
                where=f"{key}.threshold",
                fix=f"set it to 0, or {key}.keep=above",
            )

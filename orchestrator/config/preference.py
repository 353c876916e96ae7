"""Settings of the stages dpo and online_dpo: a policy trained on rankings."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.config.engines import OptimizerConfig
from orchestrator.config.ranges import at_least, between, positive
from workers.errors import ConfigError


class PreferenceLoss(Enum):
    """Loss of a pair of completions."""

    dpo = "dpo"
    """Logistic loss of the difference of log-ratios to the reference."""
    ipo = "ipo"
    """Squared distance of that difference from 1 / (2 beta)."""
    simpo = "simpo"
    """Logistic loss of the difference of mean log-probabilities less a margin; no reference."""


class PreferencePairs(Enum):
    """The pairs of a ranking that train; ties are never pairs."""

    all = "all"
    """Every pair."""
    best_worst = "best_worst"
    """The best against the worst."""
    adjacent = "adjacent"
    """Ranks that follow each other."""


@dataclass(slots=True, kw_only=True)
class PreferenceConfig:
    """Direct preference optimisation on K-way rankings (stages dpo and online_dpo)."""

    loss: PreferenceLoss = PreferenceLoss.dpo
    """Loss of a pair."""
    beta: float = positive(0.1)
    """Scale of the implicit reward, per nat; for ipo its tau."""
    margin: float = at_least(0, 0.0)
    """Margin between the implicit rewards of a pair, in reward units; simpo only."""
    label_smoothing: float = between(-1e-9, 0.0, 0.5)
    """Probability that a label is flipped; dpo and simpo."""
    robust: bool = False
    """true: the loss is unbiased under flipped labels; false: it is smoothed."""
    sft_coefficient: float = at_least(0, 0.0)
    """Weight of the mean loss per token of the best completion."""
    pairs: PreferencePairs = PreferencePairs.all
    """The pairs that train."""
    epochs: int = positive(1)
    """Passes over the rankings; in online_dpo over those of an iteration."""
    rankings_per_step: int = positive(16)
    """Rankings per optimizer step."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=4e-4, warmup_steps=10)
    )
    """AdamW and its schedule."""

    def check(self, key: str) -> None:
        """Check that the constants belong to the loss."""
        if self.margin and self.loss is not PreferenceLoss.simpo:
            raise ConfigError(
                f"margin={self.margin:g}, and only simpo has a margin",
                where=f"{key}.margin",
                fix=f"set it to 0, or {key}.loss=simpo",
            )
        if self.label_smoothing and self.loss is PreferenceLoss.ipo:
            raise ConfigError(
                "ipo has no label smoothing",
                where=f"{key}.label_smoothing",
                fix=f"set it to 0, or {key}.loss=dpo",
            )
        if self.robust and not self.label_smoothing:
            raise ConfigError(
                "robust needs the probability of a flipped label, and it is 0",
                where=f"{key}.label_smoothing",
                fix=f"set it above 0, or {key}.robust=false",
            )

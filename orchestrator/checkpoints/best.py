"""Which checkpoint of PPO is the best, by a metric of the run.

A checkpoint holds the weights after step k. Gold scores of step k are taken with these weights.
What is known of sampled sequences, such as their score or KL, is of the weights that sampled them:
those after step k show in step k + 1, and with generation ahead of training as many steps later.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.config.data import DataSourceKind
from orchestrator.config.run import Best
from orchestrator.config.schema import Config
from workers.errors import ConfigError

_GOLD = ("ppo/gold_mean", "ppo/gold_rude_rate", "ppo/gold_truthful_rate")
_HELDOUT = ("ppo/heldout_score_mean",)  # where there is no gold labeler
_SAMPLED = (
    "ppo/score_mean",
    "ppo/shaped_return",
    "ppo/kl_sequence",
    "ppo/eos_rate",
    "ppo/response_tokens_mean",
)


@dataclass(slots=True)
class Scores:
    """What weights were worth, by the step after which they were there."""

    metric: str = ""  # "" = nothing is compared
    lowest: bool = False  # is the best
    delay: int = 0  # steps until weights show in the metric
    values: dict[str, dict[int, float]] = field(default_factory=dict)  # stage -> step -> value

    def measured(self, stage: str, step: int, metrics: Mapping[str, float]) -> bool:
        """Take the metrics of a step; whether its own weights are the best of the stage so far."""
        value = metrics.get(self.metric)
        if value is None or not math.isfinite(value):
            return False
        known = self.values.setdefault(stage, {})
        best = all(self._worth(value) > self._worth(other) for other in known.values())
        known[step - self.delay] = value
        return best and not self.delay

    def best(self, stage: str, steps: Collection[int]) -> int | None:
        """The best of these steps, the first of equals; None if none was measured."""
        known = self.values.get(stage, {})
        measured = sorted(step for step in steps if step in known)
        return max(measured, key=lambda step: self._worth(known[step]), default=None)

    def open(self, stage: str, steps: Collection[int]) -> set[int]:
        """Those of these steps whose weights have yet to show in the metric."""
        if not self.delay:
            return set()
        latest = max(self.values.get(stage, {}), default=0)
        return {step for step in steps if step > latest}

    def forget(self, stage: str, steps: Collection[int]) -> None:
        """Only these are left of the steps up to the last of them."""
        known, last = self.values.get(stage, {}), max(steps, default=-1)
        for step in [each for each in known if each <= last and each not in steps]:
            del known[step]

    def state(self) -> dict[str, Any]:
        """As plain values."""
        values = {stage: dict(known) for stage, known in self.values.items()}
        return {"metric": self.metric, "values": values}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Back to what a checkpoint holds, unless that was another metric's."""
        self.values = {}
        if state.get("metric") == self.metric:
            self.values = {
                stage: {int(step): value for step, value in known.items()}  # JSON made strings
                for stage, known in state["values"].items()
            }

    def _worth(self, value: float) -> float:
        return -value if self.lowest else value


def scores_of(config: Config) -> Scores:
    """What the checkpoints of a run are compared by."""
    metric = config.run.checkpoint.keep_best
    delay = 0 if metric in (*_GOLD, *_HELDOUT) else 1 + config.algorithm.staleness
    return Scores(metric, config.run.checkpoint.best_is is Best.lowest, delay)


def check_keep_best(config: Config) -> None:
    """The metric that checkpoints are compared by says something of weights, and is measured.

    Raises:
        ConfigError: there is no such metric of PPO, or this run does not measure it.
    """
    name, where = config.run.checkpoint.keep_best, "run.checkpoint.keep_best"
    if not name:
        return
    if name not in (known := (*_GOLD, *_HELDOUT, *_SAMPLED)):
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise ConfigError(
            f"{name!r} is no metric that checkpoints are compared by",
            where=where,
            fix=f"did you mean {' or '.join(close)}?" if close else f"try {_SAMPLED[0]}",
        )
    pocket = config.data.source is DataSourceKind.pocket
    measured = _GOLD if pocket else _HELDOUT
    if name in _SAMPLED or (name in measured and config.algorithm.evaluate_every):
        return
    fix = "set algorithm.evaluate_every"
    if name not in measured:
        fix = f"only the pocket world has gold scores, in place of the reward: try {measured[0]}"
    raise ConfigError(f"{name} is not measured in this run", where=where, fix=fix)

"""Selection of the best checkpoint of PPO or rejection sampling by a metric of the run.

A checkpoint has the weights after step k. Gold scores of step k are measured with these weights.
Metrics of sampled sequences, such as score or KL, belong to the weights that sampled them: the
weights after step k appear in the metrics of step k + 1 + staleness.
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
_HELDOUT = ("ppo/heldout_score_mean",)  # used if there is no gold labeler
_JUDGED = ("ppo/heldout_preferred",)  # if a judge compares held-out answers
_REJECTION = "rejection/"  # rejection sampling measures the same on held-out prompts
_SAMPLED = (
    "ppo/score_mean",
    "ppo/shaped_return",
    "ppo/kl_sequence",
    "ppo/eos_rate",
    "ppo/response_tokens_mean",
)


@dataclass(slots=True)
class Scores:
    """Metric values of weights, by the step that produced the weights."""

    metric: str = ""  # "" = checkpoints are not compared
    lowest: bool = False  # the lowest value is the best
    delay: int = 0  # steps until the weights appear in the metric
    delays: dict[str, int] = field(default_factory=dict)  # of stages where it is another one
    values: dict[str, dict[int, float]] = field(default_factory=dict)  # stage -> step -> value

    def measured(self, stage: str, step: int, metrics: Mapping[str, float]) -> bool:
        """Record the metrics of a step; True if its weights are the best of the stage so far."""
        value = metrics.get(self.metric)
        if value is None or not math.isfinite(value):
            return False
        known = self.values.setdefault(stage, {})
        best = all(self._worth(value) > self._worth(other) for other in known.values())
        delay = self.delays.get(stage, self.delay)
        known[step - delay] = value
        return best and not delay

    def best(self, stage: str, steps: Collection[int]) -> int | None:
        """The best of these steps, the first one among equals; None if none was measured."""
        known = self.values.get(stage, {})
        measured = sorted(step for step in steps if step in known)
        return max(measured, key=lambda step: self._worth(known[step]), default=None)

    def open(self, stage: str, steps: Collection[int]) -> set[int]:
        """Those of these steps whose weights have not been measured yet."""
        if not self.delays.get(stage, self.delay):
            return set()
        latest = max(self.values.get(stage, {}), default=0)
        return {step for step in steps if step > latest}

    def forget(self, stage: str, steps: Collection[int]) -> None:
        """Delete the values of all other steps up to the last of these."""
        known, last = self.values.get(stage, {}), max(steps, default=-1)
        for step in [each for each in known if each <= last and each not in steps]:
            del known[step]

    def state(self) -> dict[str, Any]:
        """The state as plain values, for a checkpoint."""
        values = {stage: dict(known) for stage, known in self.values.items()}
        return {"metric": self.metric, "values": values}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint, or start empty if its metric is another one."""
        self.values = {}
        if state.get("metric") == self.metric:
            self.values = {
                stage: {int(step): value for step, value in known.items()}  # JSON keys are strings
                for stage, known in state["values"].items()
            }

    def _worth(self, value: float) -> float:
        return -value if self.lowest else value


def scores_of(config: Config) -> Scores:
    """Empty Scores for the metric that compares the checkpoints of a run."""
    metric = config.run.checkpoint.keep_best
    heldout = metric.startswith(_REJECTION) or metric in (*_GOLD, *_HELDOUT, *_JUDGED)
    delay = 0 if heldout else 1 + config.algorithm.staleness
    return Scores(metric, config.run.checkpoint.best_is is Best.lowest, delay)


def check_keep_best(config: Config) -> None:
    """Check that run.checkpoint.keep_best names a metric that can compare checkpoints.

    Raises:
        ConfigError: there is no such metric, or this run does not measure it.
    """
    name, where = config.run.checkpoint.keep_best, "run.checkpoint.keep_best"
    if not name:
        return
    heldout = (*_GOLD, *_HELDOUT, *_JUDGED)
    rejection = tuple(_of_rejection(each) for each in heldout)
    if name not in (known := (*heldout, *_SAMPLED, *rejection)):
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise ConfigError(
            f"{name!r} is no metric that checkpoints are compared by",
            where=where,
            fix=f"did you mean {' or '.join(close)}?" if close else f"try {_SAMPLED[0]}",
        )
    pocket = config.data.source is DataSourceKind.pocket
    measured = _GOLD if pocket else _HELDOUT
    if config.training_judge is not None:
        measured = (*measured, *_JUDGED)
    judged = (*_JUDGED, *map(_of_rejection, _JUDGED))
    measured = (*measured, *map(_of_rejection, measured))
    if name in _SAMPLED or (name in measured and config.algorithm.evaluate_every):
        return
    fix = "set algorithm.evaluate_every"
    if name in judged:
        fix += ", and a judge that algorithm.evaluation_judge lets compare these answers"
    elif name not in measured:
        fix = f"only the pocket world has gold scores, in place of the reward: try {measured[0]}"
    raise ConfigError(f"{name} is not measured in this run", where=where, fix=fix)


def _of_rejection(name: str) -> str:
    """The same metric of the stage rejection_sampling."""
    return name.replace("ppo/", _REJECTION, 1)

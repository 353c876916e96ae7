"""A sweep as a table: the keys that differ between its jobs, and one figure of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.report.tables import MISSING
from orchestrator.results.summary import Summary, model_label
from orchestrator.run_files.damage import Damage
from orchestrator.runs.comparing import keys_and_values
from orchestrator.runs.reading import RunView
from orchestrator.runs.spread import Spread
from orchestrator.runs.sweep_models import ModelFigure, model_figures
from orchestrator.telemetry.metrics import read_whole_metrics

SEED = "seed"
# Metrics that tell most about a stage, by what follows the name of its kind, the best one first.
_MEASURED = {
    "score_mean": "reward, last iteration",
    "validation_loss": "held-out loss",
    "heldout_loss": "held-out loss",
    "loss": "training loss, last step",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a run."""

    name: str
    value: float
    low: float | None = None  # 95 % interval over the run's prompts or pairs
    high: float | None = None

    def text(self) -> str:
        """The value with its interval."""
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}-{self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Sweep:
    """The jobs of a sweep, and groups of jobs that differ in nothing but their seed."""

    keys: tuple[str, ...]  # that differ, dotted
    figure: str  # what is compared; "" if no job has a result
    jobs: tuple[tuple[RunView, tuple[str, ...], Figure | None], ...]
    groups: tuple[tuple[tuple[str, ...], Spread], ...]  # values but the seed, mean of the figure
    models: tuple[ModelFigure, ...] = ()  # of the evaluations

    @property
    def settings(self) -> list[str]:
        """The keys that differ, but for the seed."""
        return [key for key in self.keys if key != SEED]


def sweep_of(runs: Sequence[RunView]) -> Sweep:
    """Compare the jobs of a sweep, in the order of their folders' numbers."""
    ordered = sorted(runs, key=lambda run: _number(run.folder.path.name))
    plain = [keys_and_values(run.config) for run in ordered]
    keys = _differing(plain)
    figures = [figure_of(run.summary) or _last_measured(run) for run in ordered]
    name = next((each.name for each in figures if each is not None), "")
    figures = [each if each is not None and each.name == name else None for each in figures]
    values = [tuple(found.get(key, MISSING) for key in keys) for found in plain]
    jobs = tuple(zip(ordered, values, figures, strict=True))
    others = [_without_seed(keys, each) for each in values]
    models = model_figures(list(zip(ordered, others, strict=True)))
    return Sweep(keys, name, jobs, _groups(others, figures), models)


def figure_of(summary: Summary) -> Figure | None:
    """What tells most about a run: the last model's win rate, else its gold score, and so on."""
    names = list(reversed(summary.ordered_models()))
    for name in names:
        if (found := summary.preference(name, "sft")) is not None:
            label = f"{model_label(name)} preferred to SFT"
            return Figure(label, found.rate, found.low, found.high)
    for name in names:
        if (gold := summary.models[name].gold_mean) is not None:
            return Figure(f"{model_label(name)} gold score", gold)
    held_out = summary.reward_model.heldout
    if held_out is not None and held_out.accuracy is not None:
        label = "reward model, held-out pairs"
        return Figure(label, held_out.accuracy, held_out.low, held_out.high)
    return None


def _last_measured(run: RunView) -> Figure | None:
    """Of a run without an evaluation: the reward, or the held-out loss, of its last stage."""
    records = read_whole_metrics(run.folder.metrics, Damage())
    for stage in reversed(dict.fromkeys(record.stage for record in records)):
        for ending, what in _MEASURED.items():
            values = [
                r.value for r in records if r.stage == stage and r.name.partition("/")[2] == ending
            ]
            if values and math.isfinite(values[-1]):
                return Figure(f"{model_label(stage)} {what}", values[-1])
    return None


def _differing(plain: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    every = dict.fromkeys(key for found in plain for key in found)
    return tuple(k for k in every if len({found.get(k, MISSING) for found in plain}) > 1)


def _without_seed(keys: Sequence[str], values: Sequence[str]) -> tuple[str, ...]:
    return tuple(value for key, value in zip(keys, values, strict=True) if key != SEED)


def _groups(
    others: Sequence[tuple[str, ...]], figures: Sequence[Figure | None]
) -> tuple[tuple[tuple[str, ...], Spread], ...]:
    """Jobs with the same values of all keys but the seed; those with two figures or more."""
    found: dict[tuple[str, ...], list[float]] = {}
    for values, figure in zip(others, figures, strict=True):
        if figure is not None and math.isfinite(figure.value):
            found.setdefault(values, []).append(figure.value)
    return tuple((k, Spread.of(v)) for k, v in found.items() if len(v) > 1)


def _number(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (10**9, name)

"""What the jobs of a sweep say about each model: means over the jobs that differ in their seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from orchestrator.report.costs import kl_at_end
from orchestrator.report.tables import MISSING
from orchestrator.results.summary import EvaluationRow, Summary, model_label
from orchestrator.run_files.damage import Damage
from orchestrator.runs.reading import RunView
from orchestrator.runs.spread import Spread
from orchestrator.telemetry.metrics import read_whole_metrics

_PREFERRED = "preferred to "
_KL, _SECONDS = "KL at the end, nats", "seconds of its stage"
_LABELS = {
    "gold_mean": "gold score",
    "reward_mean": "reward",
    "likert_mean": "quality, 1 to 7",
    "web_perplexity": "web perplexity",
    "truthful_rate": "truthful",
    "rude_rate": "rude",
    "correct_rate": "correct",
    "length_mean": "length, tokens",
    "cloze_accuracy": "cloze accuracy",
    "kl_bound": "KL bound, nats",
    "parameters": "parameters",
}
_SHOWN = ("gold score", "reward", "quality, 1 to 7", _PREFERRED + "SFT", _KL, "web perplexity")
_DIGITS = {_SECONDS: 0, "parameters": 0, _KL: 2, "gold score": 2, "web perplexity": 2}


@dataclass(frozen=True, slots=True)
class ModelFigure:
    """A figure of one model over the jobs with the same values of all keys but the seed."""

    values: tuple[str, ...]  # of those keys
    model: str
    figure: str
    spread: Spread


def model_figures(
    jobs: Sequence[tuple[RunView, tuple[str, ...]]],
) -> tuple[ModelFigure, ...]:
    """All figures of all evaluated models, in the order of the jobs and of their models.

    Args:
        jobs: Each run, with its values of the keys in which the settings differ.
    """
    found: dict[tuple[tuple[str, ...], str, str], list[float]] = {}
    for run, values in jobs:
        for model, figure, value in _figures(run):
            if math.isfinite(value):
                found.setdefault((values, model, figure), []).append(value)
    return tuple(ModelFigure(*key, Spread.of(each)) for key, each in found.items())


def model_rows(figures: Sequence[ModelFigure]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table of the most telling figures: the values, the model, its figures."""
    there = {each.figure for each in figures}
    shown = [name for name in _SHOWN if name in there]
    cells: dict[tuple[tuple[str, ...], str], dict[str, Spread]] = {}
    for each in figures:
        cells.setdefault((each.values, each.model), {})[each.figure] = each.spread
    rows = [
        [
            *values,
            model_label(model),
            str(max(spread.jobs for spread in row.values())),
            *(row[n].text(_DIGITS.get(n, 3)) if n in row else MISSING for n in shown),
        ]
        for (values, model), row in cells.items()
    ]
    return ["model", "jobs", *shown], rows


def _figures(run: RunView) -> Iterator[tuple[str, str, float]]:
    """Model, figure and value of everything that the evaluation of a run measured."""
    summary = run.summary
    if not summary.models:
        return
    kls = kl_at_end(read_whole_metrics(run.folder.metrics, Damage()))
    for model in summary.ordered_models():
        for figure, value in _of_model(summary, model, kls):
            yield model, figure, value


def _of_model(
    summary: Summary, model: str, kls: Mapping[str, float]
) -> Iterator[tuple[str, float]]:
    row = summary.models[model]
    for field in fields(EvaluationRow):
        value = getattr(row, field.name)
        if field.name in _LABELS and value is not None:
            yield _LABELS[field.name], float(value)
    for task, metrics in row.lm_eval.items():
        for name, score in metrics.items():
            yield f"{task} {name}", score.value
    for name, flag in row.flags.items():
        yield f"flag {name}", flag.rate
    for preference in summary.preferred:
        if preference.model == model:
            yield _PREFERRED + model_label(preference.over), preference.rate
    if model in kls:
        yield _KL, kls[model]
    if (seconds := summary.timing.stages.get(model)) is not None:
        yield _SECONDS, seconds

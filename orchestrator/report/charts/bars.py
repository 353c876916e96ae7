"""Rows of bars and ranges, drawn as SVG: win rates, perplexity, calibration, seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.report.charts.curves import COLORS, INK, color_of, further, label_of
from orchestrator.results.summary import Summary
from orchestrator.telemetry.metrics import PPO_PHASES

WIDTH = 100.0  # units of the drawing, from the least to the greatest value


@dataclass(frozen=True, slots=True)
class Bar:
    """One row: a bar from `low` to `high`, and marks on it; in units of the drawing."""

    label: str
    text: str  # the value, for reading
    hover: str
    color: str
    low: float
    high: float
    dot: float | None = None  # the value inside its interval
    tick: float | None = None  # what it is compared with


@dataclass(frozen=True, slots=True)
class Bars:
    """A chart of rows."""

    title: str
    note: str
    rows: tuple[Bar, ...]


def all_bars(summary: Summary) -> list[Bars]:
    """Every chart of rows that the summary has figures for."""
    seconds = [
        _lengths("Stages", "seconds", summary.timing.stages),
        _lengths("PPO phases", "seconds; roles overlap", _ordered(summary.timing.ppo_phases)),
    ]
    found = [_win_rates(summary), _perplexity(summary), _calibration(summary), *seconds]
    return [bars for bars in found if bars is not None and bars.rows]


def _win_rates(summary: Summary) -> Bars:
    others = further(summary.models)
    rows = []
    for p in summary.preferred:
        text = f"{100 * p.rate:.1f} %"
        hover = f"{text}, 95 % interval {100 * p.low:.1f} to {100 * p.high:.1f} %, {p.n:,} prompts"
        label = f"{label_of(p.model)} over {label_of(p.over)}"
        at = [WIDTH * _share(each) for each in (p.low, p.high, p.rate)]
        rows.append(Bar(label, text, hover, color_of(p.model, others), *at, tick=WIDTH / 2))
    return Bars("Preferred, win rates", "0 to 100 %; line: even", tuple(rows))


def _perplexity(summary: Summary) -> Bars | None:
    others = further(summary.models)
    found = {
        name: row.web_perplexity
        for name in summary.ordered_models()
        if (row := summary.models[name]).web_perplexity is not None
    }
    values = {name: value for name, value in found.items() if value is not None}
    colors = [color_of(name, others) for name in values]
    named = {label_of(name): value for name, value in values.items()}
    title = "Perplexity of web text: the alignment tax"
    return _lengths(title, "exp(nats/token), lower is better", named, colors)


def _calibration(summary: Summary) -> Bars | None:
    found = summary.reward_model.calibration
    if found is None:
        return None
    rows = []
    for b in found.bins:
        text = f"{100 * b.observed:.0f} %"
        hover = f"predicted {b.predicted:.2f}, labeler agrees {b.observed:.2f}, {b.pairs:,} pairs"
        at = [WIDTH * _share(each) for each in (b.low, b.high, b.observed)]
        label = f"predicted {100 * b.predicted:.0f} %"
        color = COLORS["reward_model"]
        rows.append(Bar(label, text, hover, color, *at, tick=WIDTH * _share(b.predicted)))
    title = f"Calibration of the reward model: error {found.error:.3f}"
    return Bars(title, "how often the labeler agrees; line: as predicted", tuple(rows))


def _lengths(
    title: str, note: str, values: dict[str, float], colors: Sequence[str] = ()
) -> Bars | None:
    """Bars from 0; values that are not finite have none."""
    finite = [value for value in values.values() if math.isfinite(value)]
    most = max(finite, default=0.0)
    rows = []
    for n, (name, value) in enumerate(values.items()):
        drawn = math.isfinite(value) and most > 0
        text = f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
        color = colors[n] if colors else COLORS["sft"]
        high = WIDTH * (value / most) if drawn else 0.0
        rows.append(Bar(label_of(name), text, f"{text} {note}", color, 0.0, high))
    return Bars(title, note, tuple(rows)) if rows else None


def _ordered(phases: dict[str, float]) -> dict[str, float]:
    known = [name for name in PPO_PHASES if name in phases]
    return {name: phases[name] for name in [*known, *(n for n in phases if n not in PPO_PHASES)]}


def _share(value: float) -> float:
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0


#: Colour of the line that a row is compared with.
TICK = INK

"""Preference over the SFT model by size, as the first figure of InstructGPT."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.report.charts.curves import COLORS, INK, label_of
from orchestrator.results.few_shot import prompted_parts
from orchestrator.results.summary import Summary

New = Callable[..., tuple[Figure, list[Axes]]]
Style = Callable[[Axes, str, str], None]
_FIXED = "sft"  # what all others are compared with
_PROMPTED = "#c9a227"


def draw_scale(summary: Summary, figure: New, style: Style) -> Figure | None:
    """Win rates over the SFT model by parameters; None unless base models differ in size."""
    families = _families(summary)
    if len({x for x, *_ in families.get("base", [])}) < 2:
        return None
    made, (axes,) = figure(1, width=7.4, height=5.0)
    colors = {"base": COLORS["base"], "base, prompted": _PROMPTED, "SFT": COLORS["sft"]}
    for family, points in families.items():
        color = colors.get(family, COLORS.get(family, INK))
        label = family if family in colors else label_of(family)
        xs, ys = [x for x, *_ in points], [y for _, y, *_ in points]
        axes.plot(xs, ys, "o-", color=color, markersize=6, linewidth=1.4, label=label)
        for x, _, low, high in points:
            axes.plot([x, x], [low, high], color=color, linewidth=4, alpha=0.3)
    axes.axhline(0.5, color=INK, linewidth=0.8, linestyle=":")
    style(axes, f"Preferred to {label_of(_FIXED)} by size", "win rate and 95 % interval")
    axes.set_xscale("log")
    axes.set_xlabel("parameters", color=INK)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=9)
    return made


def _families(summary: Summary) -> dict[str, list[tuple[int, float, float, float]]]:
    """Family -> (parameters, win rate, low, high) of its models, by size."""
    prompted = {prompted_parts(name)[0] for name in summary.models if prompted_parts(name)[1]}
    found: dict[str, list[tuple[int, float, float, float]]] = {}
    for name, row in summary.models.items():
        rate = _rate(summary, name)
        if row.parameters is None or rate is None:
            continue
        if prompted_parts(name)[1]:
            family = "base, prompted"
        elif name in ("base", "large") or name in prompted:
            family = "base"
        elif name == _FIXED or name.startswith(f"{_FIXED}_"):
            family = "SFT"
        else:
            family = name
        found.setdefault(family, []).append((row.parameters, *rate))
    return {family: sorted(points) for family, points in found.items()}


def _rate(summary: Summary, name: str) -> tuple[float, float, float] | None:
    if name == _FIXED:
        return 0.5, 0.5, 0.5
    if (found := summary.preference(name, _FIXED)) is not None:
        return found.rate, found.low, found.high
    if (found := summary.preference(_FIXED, name)) is not None:
        return 1 - found.rate, 1 - found.high, 1 - found.low
    return None

"""The table and the plot of the results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

_COLORS = {"ours": "#e07b39", "raw": "#3b6fb6", "transformers": "#8c8f98"}
_LABELS = {"ours": "rollout group", "raw": "raw vLLM", "transformers": "transformers"}
HEADS = ["at once", "side", "tokens/s", "prompt tok/s", "p50 s", "p95 s", "ours / it", "least",
         "most", "by CPU", "engine", "Ray", "driver"]  # fmt: skip


def rows(points: list[dict[str, Any]]) -> Iterator[list[str]]:
    """A row of the table per side and concurrency."""
    for point in points:
        for name, side in point["sides"].items():
            found = side["latency_seconds"]
            yield [
                str(point["concurrency"]) if name == "ours" else "",
                name,
                f"{side['tokens_per_second']:,.0f}",
                f"{side['prompt_tokens_per_second']:,.0f}",
                *(f"{found[p]:.3f}" for p in ("p50", "p95")),
                *_compared(point, name),
            ]


def _compared(point: dict[str, Any], name: str) -> list[str]:
    """Ratios beside another side, shares of time beside ours."""
    if name == "ours":
        return ["", "", "", "", *(f"{share:.1%}" for share in point["time_shares"].values())]
    found = point["ours_over"][name]
    cpu = found["median_by_cpu_seconds"]
    return [
        f"{found['median']:.3f}", f"{min(found['ratios']):.3f}", f"{max(found['ratios']):.3f}",
        "" if cpu is None else f"{cpu:.3f}", "", "", "",
    ]  # fmt: skip


def draw(points: list[dict[str, Any]], title: str, path: Path) -> None:
    """Write a PNG: tokens per second, and latency, over concurrency."""
    figure = Figure(figsize=(11, 4.4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    at = [point["concurrency"] for point in points]
    for name in points[0]["sides"]:
        sides = [point["sides"][name] for point in points]
        speeds = [[t["tokens"] / t["seconds"] for t in side["turns"]] for side in sides]
        color, label = _COLORS[name], _LABELS[name]
        left.plot(at, [s["tokens_per_second"] for s in sides], "o-", color=color, label=label)
        left.fill_between(
            at, [min(s) for s in speeds], [max(s) for s in speeds],
            color=color, alpha=0.18, linewidth=0,
        )  # fmt: skip
        for percent, style in (("p50", "o-"), ("p95", "s--")):
            found = [side["latency_seconds"][percent] for side in sides]
            right.plot(at, found, style, color=color, label=f"{label}, {percent}", markersize=5)
    for point in points:
        _write_ratio(left, point)
    _finish(left, at, "Response tokens per second", "{x:,.0f}")
    _finish(right, at, "Seconds from request to sequence", "{x:g}")
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)


def _write_ratio(axes: Axes, point: dict[str, Any]) -> None:
    if "raw" in point["ours_over"]:
        height = max(side["tokens_per_second"] for side in point["sides"].values())
        axes.annotate(
            f"{point['ours_over']['raw']['median']:.2f}", (point["concurrency"], height),
            xytext=(0, 9), textcoords="offset points", ha="center", fontsize=9,
        )  # fmt: skip


def _finish(axes: Axes, at: list[int], what: str, ticks: str) -> None:
    axes.set_title(what, fontsize=11, loc="left")
    axes.set_xscale("log", base=2)
    axes.set_xticks(at)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("sequences at once, all engines")
    axes.yaxis.set_major_formatter(StrMethodFormatter(ticks))
    axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
    axes.grid(color="#d8dee4", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)

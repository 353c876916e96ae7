"""Plots of a run, drawn from its records. A plot without data is not drawn."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from orchestrator.report.charts.curves import (
    COLORS,
    INK,
    PALE,
    Panels,
    color_of,
    further,
    groups,
    label_of,
    running_mean,
    terms_of,
)
from orchestrator.report.charts.overoptimization_plots import draw_fits, draw_gold
from orchestrator.report.charts.scale_plot import draw_scale
from orchestrator.report.overoptimization import hidden_reward_models
from orchestrator.results.summary import Summary
from orchestrator.run_files.damage import Damage, complaint
from orchestrator.telemetry.metrics import PPO_PHASES, MetricRecord, metric_of, series
from workers.process.disk import writing

Records = Sequence[MetricRecord]


def draw_plots(
    folder: Path, records: Records, summary: Summary, damage: Damage | None = None
) -> dict[str, str]:
    """Draw every plot that has data into `folder`; returns file name -> caption.

    A plot that cannot be drawn, since its figures are absurd, is left out and noted in `damage`.

    Raises:
        CheckpointError: the disk is full or read-only.
    """
    drawn: dict[str, str] = {}
    for name, (caption, make) in _PLOTS.items():
        try:
            drawing = _drawn(make, records, summary, svg=name.endswith(".svg"))
        except Exception as error:
            if damage is None:
                raise
            damage.note(folder / name, f"it cannot be drawn: {complaint(error)}")
            continue
        if drawing is not None:
            with writing(folder / name, "a plot"):
                (folder / name).write_bytes(drawing)
            drawn[name] = caption
    return drawn


def _drawn(
    make: Callable[[Records, Summary], Figure | None],
    records: Records,
    summary: Summary,
    *,
    svg: bool,
) -> bytes | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on figures: a glyph that is missing, an axis of one point
        figure = make(records, summary)
        if figure is None:
            return None
        drawing = io.BytesIO()
        if svg:  # without a date and with fixed ids: equal figures give equal files
            with rc_context({"svg.hashsalt": "rehearsal"}):
                FigureCanvasSVG(figure).print_svg(drawing, metadata={"Date": None})
        else:
            FigureCanvasAgg(figure).print_png(drawing)
    return drawing.getvalue()


def _group(name: str) -> Callable[[Records, Summary], Figure | None]:
    """Draws the panels of a group of curves."""
    return lambda records, summary: _panels(
        records,
        groups(_further(summary, records), terms_of(record.name for record in records))[name],
        markers=name == "Gold score",
    )


def _further(summary: Summary, records: Records = ()) -> list[str]:
    """The stage runs and models that are none of the recipe's, in the run's order."""
    names = [*summary.timing.stages, *summary.models, *(record.stage for record in records)]
    hidden = hidden_reward_models(summary)  # a dozen curves in one panel would show nothing
    return further([name for name in names if name not in hidden])


def _pair_accuracy(records: Records, summary: Summary) -> Figure | None:
    figure = _group("Reward model")(records, summary)
    if figure is not None:
        axes = figure.axes[0]
        axes.axhline(0.5, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate(
            "chance", (1, 0.5), xycoords=("axes fraction", "data"), xytext=(-4, 3),
            textcoords="offset points", ha="right", fontsize=9, color=INK,
        )  # fmt: skip
        axes.set_ylim(min(0.45, axes.get_ylim()[0]), 1.02)
    return figure


def _calibration(_: Records, summary: Summary) -> Figure | None:
    found = summary.reward_model.calibration
    if found is None:
        return None
    figure, (axes,) = _figure(1, width=5.4, height=4.8)
    axes.plot([0, 1], [0, 1], ":", color=INK, linewidth=1, label="as sure as right")
    color = COLORS["reward_model"]
    for b in found.bins:
        axes.plot([b.predicted] * 2, [b.low, b.high], color=color, linewidth=5, alpha=0.3,
                  solid_capstyle="butt")  # fmt: skip
    axes.plot(
        [b.predicted for b in found.bins], [b.observed for b in found.bins], "o-", color=color,
        markersize=5, linewidth=1.2,
        label=f"{len(found.bins)} bins of {found.bins[0].pairs:,} held-out pairs",
    )  # fmt: skip
    title = f"Calibration of the reward model: error {found.error:.3f}"
    _style(axes, title, "labeler agrees (95 % interval)")
    axes.set_xlabel("predicted probability of the model's choice", color=INK)
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(min(0.48, *(b.low - 0.02 for b in found.bins)), 1.02)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def _perplexity(_: Records, summary: Summary) -> Figure | None:
    rows = [
        (name, row.web_perplexity)
        for name in summary.ordered_models()
        if (row := summary.models[name]).web_perplexity is not None
    ]
    if not rows:
        return None
    figure, (axes,) = _figure(1)
    names = [_label(name) for name, _ in rows]
    values = [value for _, value in rows if value is not None]
    bars = axes.bar(names, values, color=[_color(name, summary) for name, _ in rows], width=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=3, color=INK)
    _style(axes, "Perplexity of web text: the alignment tax", "exp(nats/token), lower is better")
    axes.set_ylim(0, max(values) * 1.15)
    axes.grid(visible=False, axis="x")
    return figure


def _win_rates(_: Records, summary: Summary) -> Figure | None:
    if not summary.preferred:
        return None
    preferred = list(reversed(summary.preferred))
    labels = [f"{_label(p.model)} over {_label(p.over)}" for p in preferred]
    figure, (axes,) = _figure(1, height=max(3.4, 1.4 + 0.42 * len(preferred)))
    for y, p in enumerate(preferred):
        axes.plot([p.low, p.high], [y, y], color=_color(p.model, summary), linewidth=5, alpha=0.35,
                  solid_capstyle="round")  # fmt: skip
        axes.plot([p.rate], [y], "o", color=_color(p.model, summary), markersize=8)
        axes.annotate(
            f"{100 * p.rate:.1f} %", (p.rate, y), xytext=(0, 8), textcoords="offset points",
            ha="center", fontsize=9, color=INK,
        )  # fmt: skip
    axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(-0.6, len(labels) - 0.2)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    _style(axes, "Preferred, held-out prompts (ties count half)", "")
    axes.set_xlabel(f"win rate and 95 % interval, n = {_counts(summary)} prompts", color=INK)
    axes.grid(visible=False, axis="y")
    return figure


def _phases(_: Records, summary: Summary) -> Figure | None:
    stages = {_label(name): value for name, value in summary.timing.stages.items()}
    known = [name for name in PPO_PHASES if name in summary.timing.ppo_phases]
    others = [name for name in summary.timing.ppo_phases if name not in PPO_PHASES]
    phases = {_label(name): summary.timing.ppo_phases[name] for name in [*known, *others]}
    panels = [
        (title, values)
        for title, values in (
            ("Stages", stages),
            ("PPO phases (roles overlap)", phases),
        )
        if values
    ]
    if not panels:
        return None
    figure, all_axes = _figure(
        len(panels), width=5.2 * len(panels), height=1.3 + 0.32 * max(len(v) for _, v in panels)
    )
    for axes, (title, values) in zip(all_axes, panels, strict=True):
        names = list(values)
        bars = axes.barh(names, [values[n] for n in names], color=COLORS["sft"], height=0.62)
        axes.bar_label(bars, fmt="%.1f", padding=3, color=INK, fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.16)
        _style(axes, title, "")
        axes.set_xlabel("seconds", color=INK)
        axes.grid(visible=False, axis="y")
    return figure


_PLOTS: dict[str, tuple[str, Callable[[Records, Summary], Figure | None]]] = {
    "win_rates.png": ("Win rates", _win_rates),
    "scale.svg": ("Preferred by size", lambda _, summary: draw_scale(summary, _figure, _style)),
    "perplexity.png": ("Alignment tax", _perplexity),
    "overoptimization.svg": (
        "Over-optimisation",
        lambda _, summary: draw_gold(summary, _figure, _style),
    ),
    "overoptimization_fits.svg": (
        "Over-optimisation: the fits",
        lambda _, summary: draw_fits(summary, _figure, _style),
    ),
    "reward.png": ("Reward and KL", _group("Reward and KL")),
    "terms.png": ("Terms of the reward", _group("Terms of the reward")),
    "gold.png": ("Gold score", _group("Gold score")),
    "pair_accuracy.png": ("Reward model", _pair_accuracy),
    "calibration.png": ("Calibration of the reward model", _calibration),
    "losses.png": ("Losses", _group("Losses")),
    "lengths.png": ("Responses", _group("Responses")),
    "health.png": ("Health", _group("Health")),
    "seconds.png": ("Where the time goes", _phases),
}


def _panels(records: Records, panels: Panels, *, markers: bool = False) -> Figure | None:
    """Panels of curves over steps, three a row; a panel without data is left out."""
    filled = [
        (title, [(c, points) for c in curves if (points := series(records, c[0], c[1]))])
        for title, curves in panels
    ]
    filled = [(title, curves) for title, curves in filled if curves]
    if not filled:
        return None
    figure, all_axes = _figure(len(filled))
    for axes, (title, curves) in zip(all_axes, filled, strict=True):
        for (_, _, label, color, line), points in curves:
            _draw_curve(axes, points, _plain(label), color, line, markers=markers)
        _style(axes, title, _unit(curves[0][0][1]))
        axes.set_xlabel("iteration" if curves[0][0][1].startswith("ppo/") else "step", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=9, steps=[1, 2, 5, 10], integer=True))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.legend(frameon=False, fontsize=9)
    return figure


def _draw_curve(
    axes: Axes,
    points: list[tuple[int, float]],
    label: str,
    color: str,
    line: str,
    *,
    markers: bool,
) -> None:
    steps = [step for step, _ in points]
    values = [value for _, value in points]
    if line == "o" or len(points) < 3:
        style = "o-" if len(points) > 1 else "o"
        axes.plot(steps, values, style, color=color, label=label, markersize=5, linewidth=1.2)
        return
    if len(points) <= 200:
        marker = "o" if markers else None
        axes.plot(steps, values, line, color=color, label=label, marker=marker, markersize=4)
        return
    # A long noisy curve hides its own trend: the raw one pale, a running mean on top.
    axes.plot(steps, values, line, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(steps, running_mean(values, len(values) // 40), line, color=color, label=label)


def _figure(count: int, *, width: float = 0.0, height: float = 0.0) -> tuple[Figure, list[Axes]]:
    columns = min(count, 3)
    rows = math.ceil(count / columns)
    size = (
        width or (6.4 if columns == 1 else 12.6 if columns == 3 else 10.4),
        height or 3.4 * rows,
    )
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.14)
    figure = Figure(figsize=size, dpi=130, layout=layout, facecolor="white")
    grid = figure.subplots(rows, columns, squeeze=False)
    cells: list[Axes] = list(grid.flat)
    for unused in cells[count:]:
        unused.remove()
    return figure, cells[:count]


def _style(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)
    axes.set_ylabel(unit, color=INK)
    axes.grid(visible=True, color=PALE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.margins(y=0.08)


def _unit(metric: str) -> str:
    unit = metric_of(metric).unit
    return "" if unit == "1" else unit.replace("^2", "\N{SUPERSCRIPT TWO}")


def _label(name: str) -> str:
    return _plain(label_of(name))


def _plain(label: str) -> str:
    return label.replace("$", r"\$")  # a dollar would begin a formula


def _color(name: str, summary: Summary) -> str:
    return color_of(name, _further(summary))


def _counts(summary: Summary) -> str:
    counts = sorted({p.n for p in summary.preferred})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"

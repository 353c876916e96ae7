"""PNG plots of a run, drawn from its records. A plot without data is not drawn."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from orchestrator.results.summary import MODEL_LABELS, Summary
from orchestrator.run_files.damage import Damage, complaint
from orchestrator.telemetry.metrics import METRICS, PPO_PHASES, MetricRecord, series
from workers.process.disk import writing

Records = Sequence[MetricRecord]

_COLORS = {
    "base": "#8c8f98",
    "large": "#5b5f6b",
    "teacher": "#c9a227",
    "sft": "#3b6fb6",
    "ppo": "#e07b39",
    "ppo_ptx": "#2f9e6e",
    "dpo": "#b8336a",
    "online_dpo": "#d17fa3",
    "pretrain": "#8c8f98",
    "pretrain_large": "#5b5f6b",
    "reward_model": "#8a56ac",
}
# Of models and stages that have no colour above, in their order.
_FURTHER = ("#c9a227", "#1b9aaa", "#7d5a50", "#6a8532", "#d1495b", "#4f5d95", "#a0568b", "#3d8a7d")
_LINES = ("-", "--", "-.", ":")
_STAGE_LABELS = {**MODEL_LABELS, "reward_model": "reward model"}
_INK, _PALE = "#24292f", "#d8dee4"
_ONLINE = {"ppo": "-", "ppo_ptx": "--", "online_dpo": "-."}  # with line styles

#: One curve: stage, metric, label, colour, line style.
Curve = tuple[str, str, str, str, str]


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
            png = _drawn(make, records, summary)
        except Exception as error:
            if damage is None:
                raise
            damage.note(folder / name, f"it cannot be drawn: {complaint(error)}")
            continue
        if png is not None:
            with writing(folder / name, "a plot"):
                (folder / name).write_bytes(png)
            drawn[name] = caption
    return drawn


def _drawn(
    make: Callable[[Records, Summary], Figure | None], records: Records, summary: Summary
) -> bytes | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on figures: a glyph that is missing, an axis of one point
        figure = make(records, summary)
        if figure is None:
            return None
        png = io.BytesIO()
        FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()


def _ppo_curves(records: Records, summary: Summary, metric: str) -> list[Curve]:
    # Dashes keep curves apart where they coincide, and for eyes that see no colour difference.
    return [
        *(
            (stage, f"ppo/{metric}", _STAGE_LABELS[stage], _COLORS[stage], line)
            for stage, line in _ONLINE.items()
        ),
        *_of_variants(records, summary, f"ppo/{metric}"),
    ]


def _of_variants(records: Records, summary: Summary, metric: str) -> list[Curve]:
    """A curve per stage run that is no stage of the recipe; those without points are left out."""
    return [
        (name, metric, _label(name), _color(name, summary, records), _LINES[-n % len(_LINES)])
        for n, name in enumerate(_further(summary, records), 2)
    ]


def _further(summary: Summary, records: Records = ()) -> list[str]:
    """The stage runs and models without a colour in `_COLORS`, in the run's order."""
    names = [*summary.timing.stages, *summary.models, *(record.stage for record in records)]
    return [name for name in dict.fromkeys(names) if name not in _COLORS]


def _reward(records: Records, summary: Summary) -> Figure | None:
    return _panels(
        records,
        [
            ("Score from the reward model", _ppo_curves(records, summary, "score_mean")),
            ("KL to the reference", _ppo_curves(records, summary, "kl_sequence")),
            ("Score minus KL penalty", _ppo_curves(records, summary, "shaped_return")),
        ],
    )


def _gold(records: Records, summary: Summary) -> Figure | None:
    return _panels(
        records,
        [
            ("Gold score, held-out prompts", _ppo_curves(records, summary, "gold_mean")),
            ("Reward, held-out prompts", _ppo_curves(records, summary, "heldout_score_mean")),
            ("Truthful responses", _ppo_curves(records, summary, "gold_truthful_rate")),
            ("Rude responses", _ppo_curves(records, summary, "gold_rude_rate")),
        ],
        markers=True,
    )


def _losses(records: Records, summary: Summary) -> Figure | None:
    supervised: list[tuple[str, list[Curve]]] = [
        (
            "Pretraining",
            [
                ("pretrain", "pretrain/loss", "base", _COLORS["base"], "-"),
                ("pretrain_large", "pretrain/loss", "large base", _COLORS["large"], "--"),
                *_of_variants(records, summary, "pretrain/loss"),
            ],
        ),
        (
            "SFT",
            [
                ("sft", "sft/loss", "training", _COLORS["sft"], "-"),
                ("sft", "sft/validation_loss", "held out", _INK, "o"),
                *_of_variants(records, summary, "sft/loss"),
            ],
        ),
        (
            "Reward model",
            [
                ("reward_model", "reward_model/loss", "training", _COLORS["reward_model"], "-"),
                ("reward_model", "reward_model/heldout_loss", "held out", _INK, "o"),
                *_of_variants(records, summary, "reward_model/loss"),
            ],
        ),
    ]
    ppo = [
        ("PPO: policy loss", _ppo_curves(records, summary, "policy_loss")),
        ("PPO: value loss", _ppo_curves(records, summary, "value_loss")),
        ("PPO-ptx: pretraining text", _ppo_curves(records, summary, "ptx_loss")),
    ]
    return _panels(records, supervised + ppo)


def _lengths(records: Records, summary: Summary) -> Figure | None:
    return _panels(
        records,
        [
            ("Response length", _ppo_curves(records, summary, "response_tokens_mean")),
            ("Responses that ended by themselves", _ppo_curves(records, summary, "eos_rate")),
            ("Entropy of the policy", _ppo_curves(records, summary, "entropy")),
        ],
    )


def _health(records: Records, summary: Summary) -> Figure | None:
    return _panels(
        records,
        [
            ("Engine and trainer after a weight sync", _ppo_curves(records, summary, "parity_max")),
            ("Clipped tokens", _ppo_curves(records, summary, "clip_fraction")),
            (
                "Variance explained by the critic",
                _ppo_curves(records, summary, "explained_variance"),
            ),
        ],
    )


def _pair_accuracy(records: Records, summary: Summary) -> Figure | None:
    stage = "reward_model"
    color = _COLORS[stage]
    accuracy: list[Curve] = [
        (stage, "reward_model/pair_accuracy", "training step", color, "-"),
        (stage, "reward_model/heldout_pair_accuracy", "held out", _INK, "o"),
        *_of_variants(records, summary, "reward_model/pair_accuracy"),
    ]
    pairs: list[Curve] = [
        (stage, "reward_model/pairs_kept", "ordered", color, "-"),
        (stage, "reward_model/pairs_tied", "tied, left out", _COLORS["base"], "--"),
    ]
    figure = _panels(
        records,
        [
            ("Reward model: pairs ordered as the labeler did", accuracy),
            ("Pairs in a step", pairs),
        ],
    )
    if figure is not None:
        axes = figure.axes[0]
        axes.axhline(0.5, color=_INK, linewidth=0.8, linestyle=":")
        axes.annotate(
            "chance", (1, 0.5), xycoords=("axes fraction", "data"), xytext=(-4, 3),
            textcoords="offset points", ha="right", fontsize=9, color=_INK,
        )  # fmt: skip
        axes.set_ylim(min(0.45, axes.get_ylim()[0]), 1.02)
    return figure


def _calibration(_: Records, summary: Summary) -> Figure | None:
    found = summary.reward_model.calibration
    if found is None:
        return None
    figure, (axes,) = _figure(1, width=5.4, height=4.8)
    axes.plot([0, 1], [0, 1], ":", color=_INK, linewidth=1, label="as sure as right")
    color = _COLORS["reward_model"]
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
    axes.set_xlabel("predicted probability of the model's choice", color=_INK)
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
    axes.bar_label(bars, fmt="%.2f", padding=3, color=_INK)
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
            ha="center", fontsize=9, color=_INK,
        )  # fmt: skip
    axes.axvline(0.5, color=_INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(-0.6, len(labels) - 0.2)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    _style(axes, "Preferred, held-out prompts (ties count half)", "")
    axes.set_xlabel(f"win rate and 95 % interval, n = {_counts(summary)} prompts", color=_INK)
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
        bars = axes.barh(names, [values[n] for n in names], color=_COLORS["sft"], height=0.62)
        axes.bar_label(bars, fmt="%.1f", padding=3, color=_INK, fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.16)
        _style(axes, title, "")
        axes.set_xlabel("seconds", color=_INK)
        axes.grid(visible=False, axis="y")
    return figure


_PLOTS: dict[str, tuple[str, Callable[[Records, Summary], Figure | None]]] = {
    "win_rates.png": ("Win rates", _win_rates),
    "perplexity.png": ("Alignment tax", _perplexity),
    "reward.png": ("Reward and KL", _reward),
    "gold.png": ("Gold score", _gold),
    "pair_accuracy.png": ("Reward model", _pair_accuracy),
    "calibration.png": ("Calibration of the reward model", _calibration),
    "losses.png": ("Losses", _losses),
    "lengths.png": ("Responses", _lengths),
    "health.png": ("Health", _health),
    "seconds.png": ("Where the time goes", _phases),
}


def _panels(
    records: Records, panels: list[tuple[str, list[Curve]]], *, markers: bool = False
) -> Figure | None:
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
            _draw_curve(axes, points, label, color, line, markers=markers)
        _style(axes, title, _unit(curves[0][0][1]))
        axes.set_xlabel("iteration" if curves[0][0][1].startswith("ppo/") else "step", color=_INK)
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


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the `window` values around each position, of fewer at both ends; NaN near a NaN."""
    means: list[float] = []
    for i in range(len(values)):
        near = values[max(0, i - window // 2) : i + window // 2 + 1]
        finite = all(map(math.isfinite, near))
        means.append(math.fsum(near) / len(near) if finite else math.nan)
    return means


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
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK, pad=10)
    axes.set_ylabel(unit, color=_INK)
    axes.grid(visible=True, color=_PALE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_PALE)
    axes.tick_params(colors=_INK, length=0, labelsize=9)
    axes.margins(y=0.08)


def _unit(metric: str) -> str:
    unit = METRICS[metric].unit
    return "" if unit == "1" else unit.replace("^2", "\N{SUPERSCRIPT TWO}")


def _label(name: str) -> str:
    # a dollar would begin a formula
    return _STAGE_LABELS.get(name, name.replace("_", " ").replace("$", r"\$"))


def _color(name: str, summary: Summary, records: Records = ()) -> str:
    further = _further(summary, records)
    if name in further and name not in _STAGE_LABELS:
        return _FURTHER[further.index(name) % len(_FURTHER)]
    return _COLORS.get(name, _INK)


def _counts(summary: Summary) -> str:
    counts = sorted({p.n for p in summary.preferred})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"

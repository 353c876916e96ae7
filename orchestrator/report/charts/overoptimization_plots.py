"""Plots of over-optimisation: gold score over the distance to the SFT model, and the fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.report.charts.curves import INK
from orchestrator.results.overoptimization import Estimate, Fit, Overoptimization, Proxy
from orchestrator.results.summary import Summary

New = Callable[..., tuple[Figure, list[Axes]]]
Style = Callable[[Axes, str, str], None]
# Proxies of one kind share a colour; few rankings or parameters are light.
_SHADES = ("#f2b45a", "#e07b39", "#b8336a", "#5b2a86", "#28306b", "#141a3c")
_SMALLER = ("#9fd3c7", "#2f9e6e", "#1b6d7e", "#14504a")
_DISTANCE = "distance to the SFT model, sqrt(KL) in sqrt(nats)"


def draw_gold(summary: Summary, figure: New, style: Style) -> Figure | None:
    """Gold score (solid) and proxy (dashed) over the distance: best of n, and PPO."""
    found = summary.overoptimization
    if found is None:
        return None
    panels = 3 if found.policies else 2
    made, axes = figure(panels, width=5.6 * panels, height=5.4)
    _best_of_n(axes[0], found)
    style(axes[0], "Best of n by each proxy", "gold score")
    _best_of_n_fits(axes[1], found)
    style(axes[1], "The same over the analytic KL, with fits", "gold score")
    if found.policies:
        _policies(axes[2], found)
        style(axes[2], "PPO against a proxy", "gold score")
    for each in axes:
        each.set_xlabel(_DISTANCE, color=INK)
        each.legend(frameon=False, fontsize=8, loc="best")
    axes[1].set_xlabel("sqrt(log n - (n - 1) / n), sqrt(nats)", color=INK)
    return made


def draw_fits(summary: Summary, figure: New, style: Style) -> Figure | None:
    """Coefficients and peaks of the fits of best of n, over rankings and over parameters."""
    found = summary.overoptimization
    overs = list(dict.fromkeys(t.over for t in found.trends)) if found is not None else []
    if found is None or not overs:
        return None
    names = ("peak", "alpha", "beta")
    made, axes = figure(3 * len(overs), width=12.6, height=3.4 * len(overs))
    for row, over in enumerate(overs):
        kind = _alike(found, over)
        for place, name in enumerate(names):
            panel = axes[3 * row + place]
            for proxy in kind:
                if proxy.fit is not None:
                    _error_bar(panel, float(getattr(proxy, over)), getattr(proxy.fit, name),
                               _color(found, proxy))  # fmt: skip
            panel.set_xscale("log")
            style(panel, "distance of the peak" if name == "peak" else name, "95 % interval")
            panel.set_xlabel(over, color=INK)
    return made


def _best_of_n(axes: Axes, found: Overoptimization) -> None:
    least = [math.sqrt(kl) for kl in _mean([proxy.kl for proxy in found.proxies])]
    axes.plot(least, found.oracle, "-", color=INK, linewidth=1.2, label="the gold score itself")
    named: set[str] = set()
    for proxy in found.proxies:
        distance = [math.sqrt(kl) for kl in proxy.kl]
        color, kind = _color(found, proxy), _kind(proxy)
        label = None if kind in named else kind
        named.add(kind)
        axes.plot(distance, proxy.gold, "o-", color=color, markersize=3, linewidth=1.3, label=label)
        axes.fill_between(distance, proxy.gold_low, proxy.gold_high, color=color, alpha=0.06)
        scaled = _rescaled(proxy.reward, found)
        axes.plot(distance, scaled, "--", color=color, linewidth=0.7, alpha=0.7)
    axes.plot([], [], "--", color=INK, linewidth=0.8, label="the proxy's own score, rescaled")


def _best_of_n_fits(axes: Axes, found: Overoptimization) -> None:
    distance = [math.sqrt(kl) for kl in found.bound]
    axes.plot(distance, found.oracle, "-", color=INK, linewidth=1.2, label="the gold score itself")
    xs = [max(distance) * i / 100 for i in range(101)]
    for proxy in found.proxies:
        color = _color(found, proxy)
        axes.plot(distance, proxy.gold, "o", color=color, markersize=3.5)
        fit = proxy.fit
        if fit is not None and fit.alpha.value is not None and fit.beta.value is not None:
            ys = [proxy.gold[0] + x * (fit.alpha.value - fit.beta.value * x) for x in xs]
            axes.plot(xs, ys, "-", color=color, linewidth=1)
    axes.plot([], [], "-", color=INK, linewidth=1, label="fit d (alpha - beta d)")


def _policies(axes: Axes, found: Overoptimization) -> None:
    colors = ("#3b6fb6", "#e07b39", "#2f9e6e", "#b8336a", "#8a56ac", "#1b9aaa", "#7d5a50")
    for number, policy in enumerate(found.policies):
        color = colors[number % len(colors)]
        distance = [math.sqrt(kl) for kl in policy.kl]
        label = f"{policy.name}: {policy.reward_model}, KL coefficient {policy.kl_coefficient:g}"
        axes.plot(distance, policy.gold, "o", color=color, markersize=3.5, label=label)
        if policy.fit is not None:
            _fitted(axes, policy.fit, policy.gold[0], max(distance), color)
        axes.plot(distance, _rescaled(policy.reward, found), "--", color=color, linewidth=0.7,
                  alpha=0.7)  # fmt: skip
    axes.plot([], [], "-", color=INK, linewidth=1.2, label="fit d (alpha - beta log d)")


def _fitted(axes: Axes, fit: Fit, start: float, far: float, color: str) -> None:
    alpha, beta = fit.alpha.value, fit.beta.value
    if alpha is None or beta is None:
        return
    xs = [far * (i + 1) / 100 for i in range(100)]
    axes.plot(xs, [start + x * (alpha - beta * math.log(x)) for x in xs], "-", color=color,
              linewidth=1.3)  # fmt: skip


def _rescaled(reward: Sequence[float], found: Overoptimization) -> list[float]:
    """A proxy's score in the units of the gold score: equal at the start, one deviation is 0.5."""
    start = found.oracle[0]
    return [start + 0.5 * (value - reward[0]) for value in reward]


def _error_bar(axes: Axes, x: float, found: Estimate, color: str) -> None:
    if found.value is None:
        return
    if found.low is not None and found.high is not None:
        axes.plot([x, x], [found.low, found.high], color=color, linewidth=4, alpha=0.3,
                  solid_capstyle="round")  # fmt: skip
    axes.plot([x], [found.value], "o", color=color, markersize=6)


def _alike(found: Overoptimization, over: str) -> list[Proxy]:
    other = "parameters" if over == "rankings" else "rankings"
    known = [p for p in found.proxies if getattr(p, over) and getattr(p, other)]
    values = [getattr(p, other) for p in known]
    kinds = {v: len({getattr(p, over) for p in known if getattr(p, other) == v}) for v in values}
    best = max(kinds, key=lambda value: (kinds[value], values.count(value)), default=None)
    return [p for p in known if getattr(p, other) == best]


def _kind(proxy: Proxy) -> str:
    rankings = f"{proxy.rankings:,} rankings" if proxy.rankings else proxy.name
    size = f", {proxy.parameters:,} parameters" if proxy.parameters else ""
    return rankings + size


def _color(found: Overoptimization, proxy: Proxy) -> str:
    most = max((p.parameters or 0 for p in found.proxies), default=0)
    if (proxy.parameters or 0) == most:
        sizes = sorted({p.rankings or 0 for p in found.proxies if (p.parameters or 0) == most})
        return _shade(_SHADES, sizes.index(proxy.rankings or 0), len(sizes))
    sizes = sorted({p.parameters or 0 for p in found.proxies} - {most})
    return _shade(_SMALLER, sizes.index(proxy.parameters or 0), len(sizes))


def _shade(shades: Sequence[str], place: int, count: int) -> str:
    return shades[round(place * (len(shades) - 1) / max(1, count - 1))]


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]

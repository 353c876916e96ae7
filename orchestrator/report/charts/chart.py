"""Charts as SVG: what the template draws, computed without any script."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from orchestrator.report.charts.curves import Panels, running_mean
from orchestrator.report.measured import Measured, Series
from orchestrator.telemetry.metrics import METRICS

WIDTH, HEIGHT = 400, 220  # units of the drawing; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 8, 22
_BUCKETS = 240  # columns that a long series is drawn in, by its least and greatest value
_TICKS = 5
_RAW_FROM = 80  # values from which on a running mean is drawn over the pale values

_HUGE = 1.7e308  # about the largest float

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One curve of a chart."""

    path: str  # of SVG
    color: str
    dashed: bool = False
    pale: bool = False
    dots: tuple[Point, ...] = ()


@dataclass(frozen=True, slots=True)
class Legend:
    """Name, colour and newest value of a curve."""

    label: str
    color: str
    last: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, in units of the drawing."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    legend: tuple[Legend, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    gaps: int  # values that are not finite, which cannot be drawn
    readings: tuple[tuple[str, tuple[tuple[float, str, str], ...]], ...] = ()
    """Name of each curve, and (place, step, value) of its points, for a pointer on the chart."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A series and how it looks."""

    series: Series
    label: str
    color: str
    style: str = "-"  # "-", a broken line, or "o" for values of few steps


def panels(measured: Measured, chosen: Panels, *, readable: bool = False) -> list[Chart]:
    """A chart for each panel that has data; `readable`: with the values for a pointer."""
    found = []
    for title, curves in chosen:
        there = [
            Curve(series, label, color, style)
            for stage, name, label, color, style in curves
            if (series := measured.series(stage, name)) is not None
        ]
        if there:
            found.append(chart(title, there, readable=readable))
    return found


def chart(title: str, curves: Sequence[Curve], *, readable: bool = False) -> Chart:
    """A chart of one or more series with one unit; `readable`: with the values for a pointer."""
    points = [(curve, *_points(curve.series)) for curve in curves]
    finite = [p for _, steps, values in points for p in zip(steps, values, strict=True)
              if math.isfinite(p[1])]  # fmt: skip
    axes = _Axes(finite)
    return Chart(
        title=title,
        unit=unit_of(curves[0].series),
        lines=tuple(line for curve, s, v in points for line in _lines(curve, s, v, axes)),
        legend=tuple(
            Legend(c.label, c.color, short(c.series.values[-1] if c.series.values else math.nan))
            for c, _, _ in points
        ),
        x_ticks=tuple((axes.x(t), f"{t:,.0f}") for t in axes.x_ticks()),
        y_ticks=tuple((axes.y(t), short(t)) for t in axes.y_ticks()),
        gaps=sum(not math.isfinite(v) for _, _, values in points for v in values),
        readings=tuple(_reading(c, s, v, axes) for c, s, v in points) if readable else (),
    )


def _reading(
    curve: Curve, steps: list[float], values: list[float], axes: _Axes
) -> tuple[str, tuple[tuple[float, str, str], ...]]:
    points = thinned(steps, values)
    return curve.label, tuple((axes.x(s), f"{s:,.0f}", short(v)) for s, v in points)


def unit_of(series: Series) -> str:
    """The unit as the report writes it."""
    known = METRICS.get(series.name)
    unit = known.unit if known else series.unit
    return "" if unit == "1" else unit.replace("^2", "\N{SUPERSCRIPT TWO}")


def short(value: float) -> str:
    """A number in four significant digits at most."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class _Axes:
    """Steps and values to places in the drawing."""

    def __init__(self, points: Sequence[Point]) -> None:
        xs = [x for x, _ in points] or [0.0]
        ys = [y for _, y in points] or [0.0]
        self._x = _widened(min(xs), max(xs), 0.0)
        self._y = _widened(min(ys), max(ys), 0.06)

    def x(self, step: float) -> float:
        return round(_LEFT + _share(step, self._x) * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - _BOTTOM - _share(value, self._y) * (HEIGHT - _TOP - _BOTTOM), 1)

    def x_ticks(self) -> list[float]:
        return [t for t in ticks(*self._x) if t == int(t)]

    def y_ticks(self) -> list[float]:
        return ticks(*self._y)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two bounds, about five."""
    rough = high / _TICKS - low / _TICKS
    if not math.isfinite(rough) or rough <= 0:
        return []
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step)
    last = math.floor(high / step)
    return [n * step for n in range(first, min(last, first + 3 * _TICKS) + 1)]


def _widened(low: float, high: float, margin: float) -> tuple[float, float]:
    if high <= low:
        half = max(abs(low) * 0.05, 0.5 if margin == 0.0 else 1e-6)
        return low - half, high + half
    room = high * margin - low * margin
    return max(low - room, -_HUGE), min(high + room, _HUGE)


def _share(value: float, bounds: tuple[float, float]) -> float:
    """Where a value lies between two bounds; halves, as the difference can be infinite."""
    low, high = bounds
    return (value / 2 - low / 2) / (high / 2 - low / 2)


def _points(series: Series) -> tuple[list[float], list[float]]:
    # values are appended by another thread after steps: only whole pairs are used
    count = min(len(series.steps), len(series.values))
    return [float(s) for s in series.steps[:count]], list(series.values[:count])


def _lines(curve: Curve, steps: list[float], values: list[float], axes: _Axes) -> Iterator[Line]:
    if curve.style == "o" or len(steps) == 1:
        dots = [(axes.x(s), axes.y(v)) for s, v in thinned(steps, values) if math.isfinite(v)]
        yield Line("", curve.color, dots=tuple(dots))
        return
    dashed, raw = curve.style in ("--", "-.", ":"), thinned(steps, values)
    if len(steps) < _RAW_FROM:
        yield Line(_path(raw, axes), curve.color, dashed)
        return
    yield Line(_path(raw, axes), curve.color, dashed, pale=True)
    smooth = _thinned_mean(steps, values)
    yield Line(_path(smooth, axes), curve.color, dashed)


def _thinned_mean(steps: list[float], values: list[float]) -> list[Point]:
    """The running mean of the report, of at most four values per column of the drawing."""
    every = max(1, len(values) // (4 * _BUCKETS))
    steps, values = steps[::every], values[::every]
    return thinned(steps, running_mean(values, len(values) // 40))


def thinned(steps: Sequence[float], values: Sequence[float]) -> list[Point]:
    """A long series by the least and the greatest value of each column; a gap stays one.

    A single value that stands out is still seen, as it would not be in a sample of the values.
    """
    if len(steps) <= 2 * _BUCKETS:
        return list(zip(steps, values, strict=True))
    found: list[Point] = []
    size = len(steps) / _BUCKETS
    for n in range(_BUCKETS):
        inside = range(int(n * size), int((n + 1) * size))
        finite = [i for i in inside if math.isfinite(values[i])]
        if not finite:
            found.append((steps[inside[0]], math.nan))
            continue
        ends = {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
        found += [(steps[i], values[i]) for i in sorted(ends)]
    return found


def _path(points: Sequence[Point], axes: _Axes) -> str:
    parts = []
    for finite, run in groupby(points, lambda point: math.isfinite(point[1])):
        if finite:
            places = [f"{axes.x(x):g} {axes.y(y):g}" for x, y in run]
            parts.append("M" + "L".join(places if len(places) > 1 else places * 2))
    return "".join(parts)

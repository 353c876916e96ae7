"""Charts: places of points, ticks, gaps, and long series."""

from __future__ import annotations

import math
import re

import pytest

from orchestrator.report.charts.chart import (
    HEIGHT,
    WIDTH,
    Curve,
    chart,
    panels,
    short,
    thinned,
    ticks,
)
from orchestrator.report.measured import Measured
from orchestrator.telemetry.metrics import MetricRecord


def measured(values: list[float], name: str = "ppo/kl_sequence", stage: str = "ppo") -> Measured:
    found = Measured()
    found.add(MetricRecord.make(stage, n, name, v) for n, v in enumerate(values, start=1))
    return found


def drawn(values: list[float], style: str = "-"):
    series = measured(values).series("ppo", "ppo/kl_sequence")
    assert series is not None
    return chart("KL", [Curve(series, "PPO", "#e07b39", style)])


def places(path: str) -> list[list[float]]:
    return [[float(n) for n in pair.split()] for pair in re.split("[ML]", path) if pair]


def test_the_ends_of_a_series_are_at_the_edges_and_its_middle_halfway() -> None:
    (line,) = drawn([0.0, 1.0, 2.0]).lines
    (x0, y0), (x1, y1), (x2, y2) = places(line.path)
    assert (x0, x2) == (52, WIDTH - 16)
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert 0 < y2 < y0 < HEIGHT  # greater is higher


def test_a_value_that_is_not_finite_is_a_gap_and_counted() -> None:
    found = drawn([1.0, 2.0, math.nan, 3.0, math.inf, 4.0])
    (line,) = found.lines
    assert line.path.count("M") == 3
    assert found.gaps == 2


@pytest.mark.parametrize(
    "values", [[5.0], [math.nan], [0.0, 0.0], [1e308, -1e308], [1e-300, 2e-300], [7.0] * 300]
)
def test_odd_series_give_a_chart_with_finite_places(values: list[float]) -> None:
    found = drawn(values)
    for line in found.lines:
        assert all(math.isfinite(n) for pair in places(line.path) for n in pair)
        assert all(math.isfinite(n) for dot in line.dots for n in dot)


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.13, 0.57) == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert ticks(-1, 1) == pytest.approx([-1, -0.5, 0, 0.5, 1])
    assert ticks(1, 1) == []


def test_a_single_outlier_of_a_long_series_is_still_drawn() -> None:
    values = [0.0] * 50_000
    values[31_337] = 9.0
    points = thinned(range(50_000), values)
    assert len(points) < 500
    assert (31_337, 9.0) in points


def test_a_long_series_has_pale_values_under_their_mean() -> None:
    pale, mean = drawn([float(n % 2) for n in range(400)]).lines
    assert (pale.pale, mean.pale) == (True, False)
    heights = [y for _, y in places(mean.path)]
    assert max(heights) - min(heights) < 0.2 * HEIGHT  # the mean of 0 and 1 hardly moves


def test_values_of_few_steps_are_dots() -> None:
    (line,) = drawn([1.0, 2.0], "o").lines
    assert (line.path, len(line.dots)) == ("", 2)


def test_only_panels_with_data_are_drawn_with_the_newest_value_as_legend() -> None:
    found = panels(measured([1.0, 0.123456]), [
        ("KL", [("ppo", "ppo/kl_sequence", "PPO", "#000000", "-"),
                ("ppo_ptx", "ppo/kl_sequence", "PPO-ptx", "#000000", "-")]),
        ("Score", [("ppo", "ppo/score_mean", "PPO", "#000000", "-")]),
    ])  # fmt: skip
    assert [c.title for c in found] == ["KL"]
    assert found[0].unit == "nats/sequence"
    assert [(each.label, each.last) for each in found[0].legend] == [("PPO", "0.1235")]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1,234"), (0.00001234, "1.2e-05"), (-0.5, "-0.5"), (2.5e7, "2.5e+07"),
     (math.nan, "nan"), (12.3456, "12.35")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_metrics_are_kept_by_stage_and_name() -> None:
    found = measured([1.0, 2.0])
    found.add([MetricRecord.make("ppo_ptx", 7, "ppo/kl_sequence", 5.0)])
    assert found.stages() == ["ppo", "ppo_ptx"]
    assert found.last("ppo", "ppo/kl_sequence") == 2
    assert found.last("ppo", "ppo/score_mean") is None
    assert found.last_step("ppo_ptx") == 7
    assert found.total("ppo", "ppo/kl_sequence") == 3
    assert found.count() == 3

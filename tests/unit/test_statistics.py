"""Intervals against published values, inversion of the score test, and exact coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.statistics import normal_interval, preference, win_rate
from workers.errors import DataError, NonFiniteError


def test_ties_count_half() -> None:
    result = win_rate([3.0, 1.0, 2.0, 2.0], [1.0, 3.0, 2.0, 1.0])
    assert result.rate == (1 + 0 + 0.5 + 1) / 4
    assert result.n == 4


def test_wilson_literals() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for wins, n, low, high in (
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):  # fmt: skip
        result = preference([1.0] * wins + [0.0] * (n - wins))
        assert (result.low, result.high) == pytest.approx((low, high), abs=5e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.floats(0, 1))
def test_the_bounds_are_where_the_score_test_turns(n: int, share: float) -> None:
    wins = round(share * n)
    result = preference([1.0] * wins + [0.0] * (n - wins))
    for bound in (result.low, result.high):
        if bound not in (0, 1):
            z = abs(result.rate - bound) / math.sqrt(bound * (1 - bound) / n)
            assert z == pytest.approx(1.96, abs=1e-4)
    assert 0 <= result.low <= result.rate <= result.high <= 1
    # Asking the other way round mirrors the answer.
    mirrored = preference([0.0] * wins + [1.0] * (n - wins))
    assert mirrored.low == pytest.approx(1 - result.high)


def test_exact_coverage_averages_95_percent() -> None:
    # Every outcome of n = 50 weighed by its binomial probability, over the range of true rates.
    n = 50
    results = [preference([1.0] * k + [0.0] * (n - k)) for k in range(n + 1)]
    coverage = [
        sum(
            math.comb(n, k) * p**k * (1 - p) ** (n - k)
            for k, r in enumerate(results)
            if r.low <= p <= r.high
        )
        for p in np.linspace(0.02, 0.98, 97).tolist()
    ]
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.01)
    assert min(coverage) > 0.9


def test_ties_only_raise_the_coverage() -> None:
    draws = np.random.default_rng(0).choice([0.0, 0.5, 1.0], size=(500, 100), p=[0.2, 0.4, 0.4])
    hits = [r.low <= 0.6 <= r.high for r in map(preference, draws)]
    assert np.mean(hits) > 0.97


def test_normal_interval_literals() -> None:
    # 1, 2, 3: s = 1, half width 1.96 / sqrt(3).
    result = normal_interval([1.0, 2.0, 3.0])
    assert result.mean == 2.0
    assert result.high - result.mean == pytest.approx(1.13158, abs=1e-5)
    assert result.mean - result.low == pytest.approx(1.13158, abs=1e-5)
    single = normal_interval([4.0])
    assert (single.low, single.high, single.n) == (4.0, 4.0, 1)


def test_nothing_and_nonsense_are_refused() -> None:
    with pytest.raises(DataError, match="shape"):
        preference([])
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        preference([2.0])
    with pytest.raises(DataError, match="2 scores against 1"):
        win_rate([1.0, 2.0], [1.0])
    with pytest.raises(NonFiniteError, match=r"b\[1\] is nan"):
        win_rate([1.0, 2.0], [1.0, float("nan")])

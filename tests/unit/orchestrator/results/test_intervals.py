"""Intervals against published values, inversion of the score test, and exact coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.results.intervals import clustered_rate, preference, win_rate
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


def outcomes(wins: int, ties: int, losses: int) -> list[float]:
    return [1.0] * wins + [0.5] * ties + [0.0] * losses


def test_all_ties_leave_a_margin_that_could_be() -> None:
    # No loss and no win in n: the score of a margin D is n D / (1 - D), at 1.96^2 where
    # D = 3.8415 / (n + 3.8415); of 10 that is .27753.
    result = preference(outcomes(0, 10, 0))
    assert (result.rate, result.n) == (0.5, 10)
    assert (result.low, result.high) == pytest.approx((0.361234, 0.638766), abs=1e-6)


def test_without_a_loss_the_margin_is_the_share_of_wins() -> None:
    # 1 of 29 won, the rest tied: the margin is at most .1718 (Wilson, 1 of 29), the rate .5859.
    assert preference(outcomes(1, 28, 0)).high == pytest.approx((1 + 0.1718) / 2, abs=5e-5)


@pytest.mark.parametrize("counts", [(12, 30, 8), (3, 2, 1), (40, 900, 60), (0, 5, 2), (1, 99, 0)])
def test_bounds_with_ties_are_where_the_score_test_turns(counts: tuple[int, int, int]) -> None:
    # The variance of a margin D is that of its most likely rates, found by search.
    wins, ties, losses = counts
    n = sum(counts)
    result = preference(outcomes(*counts))

    def likelihood(lost: float, margin: float) -> float:
        rates = (lost + margin, 1 - margin - 2 * lost, lost)
        return sum(k * math.log(max(p, 1e-300)) for k, p in zip(counts, rates, strict=True))

    for bound in (result.low, result.high):
        margin = 2 * bound - 1
        low, high = max(0.0, -margin), (1 - margin) / 2
        for _ in range(200):  # the likelihood is concave
            a, b = low + (high - low) / 3, high - (high - low) / 3
            low, high = (a, high) if likelihood(a, margin) < likelihood(b, margin) else (low, b)
        variance = 2 * low + margin - margin**2
        z = abs(wins - losses - n * margin) / math.sqrt(n * variance)
        assert z == pytest.approx(1.959964, abs=1e-4)
    assert 0 <= result.low <= result.rate <= result.high <= 1
    mirrored = preference(outcomes(losses, ties, wins))
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((result.low, result.high))


def test_ties_narrow_the_interval() -> None:
    # 80 % ties: the variance of an outcome is .05 where that of wins and losses alone is .25.
    tied, split = preference(outcomes(100, 800, 100)), preference(outcomes(500, 0, 500))
    assert (tied.high - tied.low) / (split.high - split.low) == pytest.approx(
        math.sqrt(0.05 / 0.25), rel=0.01
    )


def test_an_outcome_between_a_tie_and_a_win_counts_partly_as_both() -> None:
    between = preference([0.75] * 40)
    halves = preference(outcomes(20, 20, 0))
    assert (between.rate, between.low, between.high) == (halves.rate, halves.low, halves.high)


@pytest.mark.parametrize("counts", [(1, 0, 0), (0, 1, 0), (20, 0, 0), (19, 1, 0), (0, 1, 19)])
def test_extreme_outcomes_have_an_interval_inside_the_range(counts: tuple[int, int, int]) -> None:
    result = preference(outcomes(*counts))
    assert 0 <= result.low <= result.rate <= result.high <= 1
    assert result.high - result.low > 0.1


def coverage(n: int, ties: float, share: float, draws: int) -> float:
    won = (1 - ties) * share
    rates = [won, ties, 1 - ties - won]
    true = won + ties / 2
    counts = np.random.default_rng(n).multinomial(n, rates, size=draws)
    unique, times = np.unique(counts, axis=0, return_counts=True)
    found = [preference(outcomes(*row)) for row in unique.tolist()]
    hits = [r.low <= true <= r.high for r in found]
    return float(np.dot(hits, times) / draws)


def test_coverage_at_80_percent_ties() -> None:
    assert coverage(200, 0.8, 0.6, 1000) == pytest.approx(0.95, abs=0.025)


@pytest.mark.slow
@pytest.mark.parametrize("ties", [0.05, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("share", [0.5, 0.6, 0.8])
@pytest.mark.parametrize("n", [50, 200, 1024])
def test_coverage_with_ties(n: int, ties: float, share: float) -> None:
    assert coverage(n, ties, share, 4000) == pytest.approx(0.95, abs=0.02)


def test_one_trial_a_cluster_is_nearly_the_wilson_interval() -> None:
    # The unbiased variance of n independent outcomes divides by n - 1: 262 trials' worth, not 263.
    found = clustered_rate([1.0] * 81 + [0.0] * 182, range(263))
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=2e-4)
    assert (found.trials, found.clusters) == (263, 263)


def test_a_hand_computed_variance_of_clusters() -> None:
    # Clusters 3/4, 1/1, 0/3: p = .5, deviations 1, .5, -1.5, squares sum to 3.5,
    # variance = 3/2 * 3.5 / 64 = .08203125, so the 8 trials are worth .25 / .08203125 = 3.047619.
    found = clustered_rate([1, 1, 1, 0, 1, 0, 0, 0], [7, 7, 7, 7, 9, 2, 2, 2])
    assert found.rate == 0.5
    # the score test at p0 = low: (.5 - low)^2 = 1.96^2 low (1 - low) / 3.047619
    for bound in (found.low, found.high):
        z = abs(0.5 - bound) / math.sqrt(bound * (1 - bound) / 3.0476190476)
        assert z == pytest.approx(1.95996, abs=1e-4)


def test_two_clusters_have_a_variance() -> None:
    # 2/4 and 1/4: p = .375, deviations +-.5, variance = 2 * .5 / 64 = 1/64: .234375 * 64 = 15
    # trials' worth, but there are 8: Wilson of .375 in 8.
    found = clustered_rate([1, 1, 0, 0, 1, 0, 0, 0], [3, 3, 3, 3, 4, 4, 4, 4])
    eight = preference([1.0] * 3 + [0.0] * 5)
    assert (found.low, found.high) == pytest.approx((eight.low, eight.high))
    # 3/3 and 0/1: p = .75, deviations .75 and -.75, variance = 2 * 1.125 / 16, a trial and a third
    found = clustered_rate([1, 1, 1, 0], [3, 3, 3, 4])
    for bound in (found.low, found.high):
        z = abs(0.75 - bound) / math.sqrt(bound * (1 - bound) / (0.1875 / (2.25 / 16)))
        assert z == pytest.approx(1.959964, abs=1e-4)


def test_repeating_a_trial_in_its_cluster_adds_no_evidence() -> None:
    outcomes = [1.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    once = clustered_rate(outcomes, range(6))
    often = clustered_rate(np.repeat(outcomes, 9), np.repeat(range(6), 9))
    assert (often.rate, often.low, often.high) == pytest.approx((once.rate, once.low, once.high))
    assert (often.trials, often.clusters) == (54, 6)


def test_where_no_variance_shows_clusters_count_as_one_trial() -> None:
    all_right = clustered_rate([1.0] * 60, np.repeat(range(20), 3))
    assert (all_right.low, all_right.high) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)
    alike = clustered_rate([1.0, 0.0, 0.0, 1.0], [0, 0, 1, 1])  # both half right: no spread
    # Wilson, one of two trials: half width 1.95996 sqrt(.125 + 3.84146 / 16) / 2.92073.
    assert (alike.low, alike.high) == pytest.approx((0.09453, 0.90547), abs=1e-5)
    one_cluster = clustered_rate([1.0, 0.0, 1.0, 1.0], [5, 5, 5, 5])
    # Wilson, .75 of one trial: centre 2.67073 / 4.84146, half width .40483 sqrt(.1875 + .96036).
    assert (one_cluster.low, one_cluster.high) == pytest.approx((0.11791, 0.98537), abs=2e-5)


def test_coverage_with_alike_trials() -> None:
    # Each of 60 clusters has its own rate: 4 to 9 completions give 6 to 36 pairs that go together.
    rng = np.random.default_rng(0)
    hits = naive = 0
    for _ in range(600):
        rates = rng.beta(7, 3, 60)
        sizes = rng.integers(6, 37, 60)
        clusters = np.repeat(np.arange(60), sizes)
        outcomes = (rng.random(len(clusters)) < rates[clusters]).astype(float)
        found, blind = clustered_rate(outcomes, clusters), preference(outcomes)
        hits += found.low <= 0.7 <= found.high
        naive += blind.low <= 0.7 <= blind.high
    assert hits / 600 == pytest.approx(0.945, abs=0.025)
    assert naive / 600 < 0.85


def test_nothing_and_nonsense_are_refused() -> None:
    with pytest.raises(DataError, match="shape"):
        preference([])
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        preference([2.0])
    for outside in ([2.0, 0.5], [-1.0, 0.5]):
        with pytest.raises(DataError, match=r"\[0, 1\]"):
            preference(outside)
        with pytest.raises(DataError, match=r"\[0, 1\]"):
            clustered_rate(outside, [0, 1])
    with pytest.raises(DataError, match="2 scores against 1"):
        win_rate([1.0, 2.0], [1.0])
    with pytest.raises(NonFiniteError, match=r"b\[1\] is nan"):
        win_rate([1.0, 2.0], [1.0, float("nan")])

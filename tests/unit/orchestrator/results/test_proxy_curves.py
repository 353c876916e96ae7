"""Best of n by a proxy, its exact KL and the fitted curves, against hand and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from orchestrator.results.best_of import kl_bound
from orchestrator.results.proxy_curves import (
    Form,
    best_of_kl,
    curve,
    fit,
    interval,
    line,
    resampled,
    shared_weights,
    spearman,
)


@pytest.mark.parametrize(
    "rewards", [[3.0, 1.0, 2.0, 5.0, 4.0, 0.0], [1.0, 2.0, 2.0, 0.0, 2.0, 1.0]]
)
def test_weights_are_those_of_all_subsets(rewards: list[float]) -> None:
    figures = np.array([7.0, -3.0, 0.5, 11.0, 2.0, 1.0])
    for n in range(1, 7):
        bests: list[float] = []
        for subset in itertools.combinations(range(6), n):
            most = max(rewards[i] for i in subset)
            tied = [figures[i] for i in subset if rewards[i] == most]
            bests.append(float(np.mean(tied)))  # each of the tied ones equally often
        weights = shared_weights(np.array(rewards), n)
        assert weights.sum() == pytest.approx(1.0)
        assert weights @ figures == pytest.approx(np.mean(bests))


def test_equal_rewards_choose_nothing_whatever_their_order() -> None:
    assert shared_weights(np.zeros(5), 3) == pytest.approx(np.full(5, 0.2))
    a = shared_weights(np.array([1.0, 0.0, 1.0]), 2)
    assert a == pytest.approx([0.5, 0.0, 0.5])


def test_kl_by_hand() -> None:
    # The better of two answers of probability 1/2 is the better one in 3 of 4 draws.
    even = best_of_kl(np.array([0.0, 1.0]), np.log([0.5, 0.5]), [1, 2])
    assert even == pytest.approx([0.0, 0.75 * math.log(1.5) + 0.25 * math.log(0.5)])
    # n = 3, probabilities .2 (worst), .8: q = .008, .992
    skewed = best_of_kl(np.array([5.0, 7.0]), np.log([0.2, 0.8]), [3])
    expected = 0.008 * math.log(0.008 / 0.2) + 0.992 * math.log(0.992 / 0.8)
    assert skewed == pytest.approx([expected])


def test_ties_and_the_order_of_answers_do_not_count() -> None:
    logprobs = np.log([0.2, 0.3, 0.5])
    assert best_of_kl(np.ones(3), logprobs, [1, 4, 64]) == pytest.approx([0.0, 0.0, 0.0])
    joined = best_of_kl(np.array([0.0, 1.0]), np.log([0.5, 0.5]), [8])
    assert best_of_kl(np.array([1.0, 1.0, 0.0]), logprobs, [8]) == pytest.approx(joined)


def test_answers_that_were_not_seen_count_as_the_worst() -> None:
    seen = best_of_kl(np.array([2.0, 1.0]), np.log([0.3, 0.3]), [4])
    whole = best_of_kl(np.array([2.0, 1.0, 0.0]), np.log([0.3, 0.3, 0.4]), [4])
    assert seen == pytest.approx(whole)


def test_kl_is_that_of_simulated_draws() -> None:
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(6))
    rewards = np.array([0.0, 1.0, 1.0, 2.0, 3.0, 4.0])
    for n in (2, 8):
        draws = rng.choice(6, size=(200_000, n), p=p)
        scores = rewards[draws] + 1e-9 * rng.random(draws.shape)  # ties at random
        q = np.bincount(draws[np.arange(len(draws)), scores.argmax(1)], minlength=6) / len(draws)
        simulated = sum(a * math.log(a / b) for a, b in zip(q, p, strict=True) if a > 0)
        (exact,) = best_of_kl(rewards, np.log(p), [n])
        assert exact == pytest.approx(simulated, abs=0.01)


def test_kl_never_crosses_its_bound_and_reaches_it_without_atoms() -> None:
    rng = np.random.default_rng(0)
    numbers = [1, 2, 4, 16, 256]
    for answers in (2, 10, 100):
        p = rng.dirichlet(np.full(answers, 0.5))
        found = best_of_kl(rng.normal(size=answers), np.log(p * rng.uniform(0.3, 1.0)), numbers)
        assert (found <= np.array([kl_bound(n) for n in numbers]) + 1e-9).all()
        assert (np.diff(found) >= -1e-9).all()
    many = 200_000
    fine = best_of_kl(np.arange(many, dtype=float), np.full(many, -math.log(many)), [16])
    assert fine == pytest.approx([kl_bound(16)], abs=1e-3)


def test_curves_through_three_points_by_hand() -> None:
    distances = np.array([[0.0, 1.0, 2.0]])
    found = fit(distances, np.array([[0.0, 1.0, 0.0]]), Form.best_of_n)  # d (2 - d)
    assert [*found.alpha, *found.beta, *found.peak, *found.r2] == pytest.approx([2, 1, 1, 1])
    gains = np.array([[0.0, 1.0, 2.0 * (1.0 - math.log(2.0))]])  # d (1 - log d)
    found = fit(distances, gains, Form.policy)
    assert [*found.alpha, *found.beta, *found.peak, *found.r2] == pytest.approx([1, 1, 1, 1])


@pytest.mark.parametrize("form", list(Form))
def test_a_fit_finds_the_coefficients_and_the_peak(form: Form) -> None:
    distances = np.linspace(0.0, 3.0, 200)
    both = np.stack([curve(distances, 1.7, 0.6, form), curve(distances, 0.4, 0.9, form)])
    found = fit(np.stack([distances] * 2), both, form)
    assert found.alpha == pytest.approx([1.7, 0.4])
    assert found.beta == pytest.approx([0.6, 0.9])
    if form is Form.best_of_n:
        assert found.peak == pytest.approx(distances[both.argmax(1)], abs=0.02)
    assert found.peak[1] == pytest.approx(distances[both[1].argmax()], abs=0.02)


def test_r2_is_the_share_of_the_variance() -> None:
    distances, gains = np.array([[0.0, 1.0, 2.0, 3.0]]), np.array([[0.0, 1.0, 1.0, 1.0]])
    found = fit(distances, gains, Form.best_of_n)
    fitted = curve(distances[0], float(found.alpha[0]), float(found.beta[0]), Form.best_of_n)
    assert found.r2[0] == pytest.approx(1 - ((gains[0] - fitted) ** 2).sum() / 0.75)
    assert 0.5 < found.r2[0] < 1.0


def test_curves_that_the_points_do_not_determine() -> None:
    nothing = fit(np.zeros((1, 4)), np.zeros((1, 4)), Form.best_of_n)
    assert np.isnan([nothing.alpha[0], nothing.peak[0], nothing.r2[0]]).all()
    rising = fit(np.array([[0.0, 1.0, 2.0]]), np.array([[0.0, 1.0, 4.0]]), Form.best_of_n)
    assert rising.peak[0] == math.inf


def test_rank_correlation_by_hand() -> None:
    assert spearman(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])) == pytest.approx(0.5)
    assert spearman(np.array([1.0, 2, 3]), np.array([9.0, 5, 1])) == pytest.approx(-1)
    # ranks 1, 2.5, 2.5, 4: 4.5 / sqrt(4.5 * 5)
    tied = spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, math.inf]))
    assert tied == pytest.approx(4.5 / math.sqrt(22.5))
    assert math.isnan(spearman(np.ones(4), np.arange(4.0)))
    assert math.isnan(spearman(np.arange(2.0), np.arange(2.0)))


def test_a_slope_by_hand() -> None:
    assert line(np.array([0.0, 1, 2]), np.array([1.0, 3, 5])) == pytest.approx(2)
    assert math.isnan(line(np.ones(3), np.arange(3.0)))


def test_bootstrap_intervals_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(size=400)
    weights = resampled(400, 2000, seed=5)
    assert weights.sum(1) == pytest.approx(np.ones(2000))
    low, high = interval(weights @ values) or (0.0, 0.0)
    error = values.std() / 20
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error
    )
    assert (weights == resampled(400, 2000, seed=5)).all()


def test_an_interval_needs_half_of_its_values() -> None:
    assert interval(np.array([1.0, math.nan, math.inf])) is None
    assert interval(np.array([1.0, 2.0, math.inf])) == pytest.approx((1.025, 1.975))

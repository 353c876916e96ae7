"""Terms of a reward as one number: sums, whitened sums, failures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from workers.records.combining import NOT_FINITE, combined, scored_by_term, whitened
from workers.records.gather import gather_scores
from workers.records.training import Scores, TermScores

NAN = math.nan


def scores(
    values: list[list[float]],
    weights: tuple[float, ...],
    *,
    normalised: bool = False,
    failures: tuple[str, ...] = (),
) -> Scores:
    count = len(values)
    names = tuple("abc"[: len(weights)])
    terms = TermScores(names, weights, normalised, np.array(values, np.float32))
    none = np.full(count, NAN, np.float32)
    return Scores(np.arange(count), none, failures or ("",) * count, ("",) * count, terms)


def test_the_sum_of_weighted_terms() -> None:
    found = combined(scores([[1, 10], [2, -4], [0, 3]], (2.0, 0.5)))
    np.testing.assert_array_equal(found.values, np.float32([7.0, 2.0, 1.5]))
    assert found.failures == ("", "", "")


def test_one_term_of_weight_one_is_its_own_value_bit_for_bit() -> None:
    values = np.random.default_rng(0).normal(size=(50, 1)).astype(np.float32)
    found = combined(scores(values.tolist(), (1.0,)))
    np.testing.assert_array_equal(found.values, values[:, 0])


def test_a_failed_sequence_has_no_value_and_does_not_enter_the_statistics() -> None:
    given = scores([[1, 1], [NAN, 500], [3, 3]], (1.0, 1.0), normalised=True,
                   failures=("", "a: down", ""))  # fmt: skip
    found = combined(given)
    np.testing.assert_allclose(found.values, [-2.0, NAN, 2.0])
    assert found.failures == ("", "a: down", "")


def test_whitened_terms_act_by_their_weights_whatever_their_scale() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=200), rng.normal(size=200)
    plain = combined(scores(np.stack([a, b], 1).tolist(), (1.0, 0.5), normalised=True))
    moved = np.stack([1000 * a + 7, b / 50 - 3], 1).tolist()
    other = combined(scores(moved, (1.0, 0.5), normalised=True))
    np.testing.assert_allclose(plain.values, other.values, atol=1e-4)
    np.testing.assert_allclose(plain.values.mean(), 0.0, atol=1e-6)


def test_a_term_that_is_the_same_everywhere_adds_nothing_when_whitened() -> None:
    found = combined(scores([[0.1, 1], [0.1, 2]], (1.0, 1.0), normalised=True))
    np.testing.assert_allclose(found.values, [-1.0, 1.0])
    assert whitened(np.full(3, 1e8) + np.array([0.0, 1e-3, 0.0]), np.arange(3)).any() is np.False_


def test_a_term_of_weight_zero_is_measured_and_does_nothing_else() -> None:
    found = combined(scores([[1, NAN], [2, 8]], (1.0, 0.0)))
    np.testing.assert_array_equal(found.values, np.float32([1.0, 2.0]))
    measured = scored_by_term(found)
    assert measured["b"][0].tolist() == [8.0]
    assert measured["b"][1] == 1


def test_a_sum_that_is_not_finite_is_a_failure() -> None:
    found = combined(scores([[3e38, 3e38], [1, 1]], (1.0, 1.0)))
    assert found.failures == (NOT_FINITE, "")
    assert math.isnan(found.values[0])


@pytest.mark.parametrize("normalised", [False, True])
def test_the_result_does_not_depend_on_order_or_on_the_workers_that_scored(
    normalised: bool,
) -> None:
    rng = np.random.default_rng(2)
    whole = scores(rng.normal(size=(64, 3)).tolist(), (0.3, 1.0, -2.0), normalised=normalised)
    wanted = combined(whole)
    order = rng.permutation(64)
    shards = [gather_scores([whole], part) for part in np.split(order, [10, 11, 40])]
    again = combined(gather_scores([combined(shard) for shard in shards], order))
    np.testing.assert_array_equal(again.values, wanted.values[order])


def test_a_reward_without_terms_stays_as_it_is() -> None:
    plain = Scores(np.arange(2), np.float32([1.0, NAN]), ("", "down"))
    assert combined(plain) is plain
    assert scored_by_term(plain) == {}

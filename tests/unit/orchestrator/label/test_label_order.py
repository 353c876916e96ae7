"""How unsure a reward model is of an order."""

from __future__ import annotations

import math
from itertools import permutations

import pytest

from orchestrator.label.order import order_entropy, uncertainty


def by_enumeration(scores: list[float]) -> float:
    """The entropy over all K! orders, each drawn best first."""
    total = 0.0
    for order in permutations(range(len(scores))):
        p, left = 1.0, list(order)
        while left:
            p *= math.exp(scores[left[0]]) / sum(math.exp(scores[i]) for i in left)
            left.pop(0)
        total -= p * math.log(p)
    return total / math.log(math.factorial(len(scores)))


@pytest.mark.parametrize("scores", [[0.3, -1.0], [0.0, 1.5, 0.2], [2.0, 0.1, -0.7, 0.4, 1.1]])
def test_the_entropy_equals_that_of_all_orders(scores: list[float]) -> None:
    assert order_entropy(scores) == pytest.approx(by_enumeration(scores), rel=1e-12)


def test_equal_scores_are_the_most_uncertain_and_far_ones_the_least() -> None:
    assert order_entropy([4.0] * 9) == pytest.approx(1)
    assert order_entropy([0.0, 1e4, -1e4]) == 0


def test_an_ensemble_disagrees_most_when_half_prefers_each() -> None:
    # all prefer 0 to 1; three of four prefer 0 to 2, and 1 to 2
    members = [[3.0, 2.0, 1.0], [0.3, 0.2, 0.1], [2.0, 1.0, 3.0], [1.0, 0.9, 0.5]]
    q = [1.0, 0.75, 0.75]
    assert uncertainty(members) == pytest.approx(sum(4 * x * (1 - x) for x in q) / 3)
    assert uncertainty([[1.0, 0.0], [0.0, 1.0]]) == 1
    assert uncertainty([[1.0, 0.0], [1.0, 0.0]]) == 0

"""Losses of pairs with probabilities, against numbers worked by hand and identities."""

from __future__ import annotations

import math

import pytest
import torch

from workers.ops import ranking_loss, rankings_loss
from workers.ops.preferences import Preference, preference_loss, trained_pairs
from workers.ops.soft_labels import known_pairs, soft_ranking_loss

NAN = math.nan
LOG3 = math.log(3.0)  # sigmoid(log 3) = 3/4


def matrix(k: int, pairs: dict[tuple[int, int], float]) -> torch.Tensor:
    found = torch.full((k, k), NAN)
    for (i, j), p in pairs.items():
        found[i, j], found[j, i] = p, 1.0 - p
    return found


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (1.0, math.log(4 / 3)),
        (0.0, math.log(4.0)),
        (0.5, 0.5 * math.log(4 / 3) + 0.5 * math.log(4.0)),
        (0.8, 0.8 * math.log(4 / 3) + 0.2 * math.log(4.0)),  # 0.507405
    ],
)
def test_the_cross_entropy_of_a_pair(p: float, expected: float) -> None:
    loss = soft_ranking_loss(torch.tensor([LOG3, 0.0]), matrix(2, {(0, 1): p}))
    assert loss.item() == pytest.approx(expected)
    again = soft_ranking_loss(torch.tensor([0.0, LOG3]), matrix(2, {(0, 1): 1.0 - p}))
    assert again.item() == pytest.approx(expected)


def test_it_is_least_where_the_scores_say_the_same_probability() -> None:
    scores = torch.tensor([LOG3, 0.0], requires_grad=True)
    soft_ranking_loss(scores, matrix(2, {(0, 1): 0.75})).backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-7)


def test_certain_pairs_have_the_loss_of_a_ranking() -> None:
    scores = torch.tensor([0.3, -1.2, 0.9, 0.1])
    ranks = torch.tensor([2, 3, 1, 4])
    certain = {(i, j): float(ranks[i] < ranks[j]) for i in range(4) for j in range(i)}
    found = soft_ranking_loss(scores, matrix(4, certain))
    assert found.item() == pytest.approx(ranking_loss(scores, ranks).item())


def test_pairs_that_were_not_asked_are_in_neither_sum_nor_divisor() -> None:
    soft = matrix(3, {(0, 1): 1.0, (1, 2): 0.5})
    first, second, p = known_pairs(soft)
    assert (first.tolist(), second.tolist(), p.tolist()) == ([0, 1], [1, 2], [1.0, 0.5])
    loss = soft_ranking_loss(torch.tensor([LOG3, 0.0, 0.0]), soft)
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2.0)) / 2)


def test_without_a_known_pair_loss_and_gradient_are_zero() -> None:
    scores = torch.tensor([1.0, -1.0], requires_grad=True)
    loss = soft_ranking_loss(scores, matrix(2, {}))
    loss.backward()
    assert loss.item() == 0.0
    assert scores.grad is not None
    assert scores.grad.tolist() == [0.0, 0.0]


def test_soft_and_certain_prompts_share_a_batch() -> None:
    scores, ranks = torch.tensor([LOG3, 0.0]), torch.tensor([1, 2])
    soft = [matrix(2, {(0, 1): 0.5}), None]
    loss = rankings_loss([scores, scores], [ranks, ranks], probabilities=soft, denominator=2)
    half = 0.5 * math.log(4 / 3) + 0.5 * math.log(4.0)
    assert loss.item() == pytest.approx((half + math.log(4 / 3)) / 2)
    with pytest.raises(ValueError, match="no margin"):
        rankings_loss([scores], [ranks], levels=[scores], probabilities=soft[:1], denominator=1)
    with pytest.raises(ValueError, match="number of prompts"):
        rankings_loss([scores], [ranks], probabilities=soft[:1])


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(K, K\)"):
        known_pairs(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="scores"):
        soft_ranking_loss(torch.zeros(3), torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("preference", "right", "wrong"),
    [
        # d = log 3 between the rewards: L(d) and L(-d)
        (Preference("dpo", 0.5), math.log(4 / 3), math.log(4.0)),
        (Preference("simpo", 1.0, margin=LOG3), math.log(2.0), math.log(10.0)),
        # (d / beta - 1 / (2 beta))^2 with beta .5: (2 log 3 - 1)^2 and (-2 log 3 - 1)^2
        (Preference("ipo", 0.5), (2 * LOG3 - 1) ** 2, (2 * LOG3 + 1) ** 2),
        (
            Preference("dpo", 0.5, label_smoothing=0.1),
            0.9 * math.log(4 / 3) + 0.1 * math.log(4.0),
            0.9 * math.log(4.0) + 0.1 * math.log(4 / 3),
        ),
    ],
)
def test_preference_losses_weigh_both_orders(
    preference: Preference, right: float, wrong: float
) -> None:
    rewards, ranks = torch.tensor([LOG3, 0.0]), torch.tensor([1, 2])
    soft = preference_loss(rewards, ranks, preference, matrix(2, {(0, 1): 0.8}))
    assert soft.item() == pytest.approx(0.8 * right + 0.2 * wrong, rel=1e-5)
    assert preference_loss(rewards, ranks, preference).item() == pytest.approx(right, rel=1e-5)


def test_fewer_pairs_are_chosen_by_their_ranks() -> None:
    soft = matrix(3, {(0, 1): 0.9, (0, 2): 0.7, (1, 2): 0.5})
    ranks = torch.tensor([1, 2, 2])
    for pairs, expected in (("all", [0.9, 0.7, 0.5]), ("best_worst", [0.9, 0.7])):
        _, _, p = trained_pairs(ranks, pairs, soft)
        assert p is not None
        assert p.tolist() == pytest.approx(expected)

"""Preference losses on rankings, against literals, identities and finite differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from workers.ops import ranking_loss
from workers.ops.preferences import (
    Preference,
    chosen_pairs,
    implicit_rewards,
    preference_loss,
)

DPO = Preference("dpo", 0.5)
RANKS = torch.tensor([2, 1, 3, 2])
LENGTHS = torch.tensor([2, 4, 5, 1])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("all", {(1, 0), (1, 3), (1, 2), (0, 2), (3, 2)}),
        ("best_worst", {(1, 2)}),
        ("adjacent", {(1, 0), (1, 3), (0, 2), (3, 2)}),
    ],
)
def test_pairs_of_a_ranking_with_a_tie(pairs, expected) -> None:
    better, worse = chosen_pairs(RANKS, pairs)
    assert set(zip(better.tolist(), worse.tolist(), strict=True)) == expected
    gaps = torch.tensor([7, 2, 40, 7])  # only the order of the ranks counts
    better, worse = chosen_pairs(gaps, pairs)
    assert set(zip(better.tolist(), worse.tolist(), strict=True)) == expected
    assert chosen_pairs(torch.tensor([4, 4]), pairs)[0].tolist() == []


def test_implicit_rewards_are_log_ratios_or_mean_log_probabilities() -> None:
    policy = torch.tensor([-2.0, -6.0, -10.0, -1.0], dtype=torch.float64)
    reference = torch.tensor([-3.0, -6.0, -8.0, -1.5], dtype=torch.float64)
    found = implicit_rewards(policy, reference, LENGTHS, DPO)
    assert found.tolist() == [0.5, 0.0, -1.0, 0.25]
    simpo = implicit_rewards(policy, None, LENGTHS, Preference("simpo", 2.0))
    assert simpo.tolist() == [-2.0, -3.0, -4.0, -2.0]
    with pytest.raises(ValueError, match="needs the reference"):
        implicit_rewards(policy, None, LENGTHS, DPO)


@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        (DPO, softplus(-1.5)),
        (replace(DPO, label_smoothing=0.1), 0.9 * softplus(-1.5) + 0.1 * softplus(1.5)),
        (
            replace(DPO, label_smoothing=0.1, robust=True),
            (0.9 * softplus(-1.5) - 0.1 * softplus(1.5)) / 0.8,
        ),
        (Preference("simpo", 2.0, margin=0.4), softplus(-1.1)),
        # the difference of log-ratios is 1.5 / .5 = 3, its target 1
        (Preference("ipo", 0.5), 4.0),
    ],
)
def test_the_loss_of_one_pair(preference: Preference, expected: float) -> None:
    rewards = torch.tensor([-0.5, 1.0], dtype=torch.float64)
    loss = preference_loss(rewards, torch.tensor([2, 1]), preference)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_where_policy_and_reference_agree_the_loss_is_log_2(beta: float) -> None:
    logprobs = torch.tensor([-3.0, -50.0, -7.5, -0.1], dtype=torch.float64)
    preference = Preference("dpo", beta)
    rewards = implicit_rewards(logprobs, logprobs.clone(), LENGTHS, preference)
    assert preference_loss(rewards, RANKS, preference).item() == pytest.approx(
        0.6931471805599453, abs=1e-12
    )


def test_the_gradient_there_is_half_beta_times_the_difference() -> None:
    logprobs = torch.tensor([-3.0, -5.0], dtype=torch.float64, requires_grad=True)
    rewards = implicit_rewards(logprobs, logprobs.detach(), LENGTHS[:2], DPO)
    preference_loss(rewards, torch.tensor([1, 2]), DPO).backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.25, 0.25])


@pytest.mark.parametrize(
    "preference",
    [
        DPO,
        replace(DPO, label_smoothing=0.2, robust=True),
        Preference("ipo", 0.3),
        Preference("simpo", 2.0, margin=0.5),
    ],
)
def test_a_ranking_is_the_mean_of_its_pairs_with_the_gradient_of_finite_differences(
    preference: Preference,
) -> None:
    generator = torch.Generator().manual_seed(4)
    policy, reference = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    policy.requires_grad_()

    def loss(given: torch.Tensor) -> torch.Tensor:
        return preference_loss(
            implicit_rewards(given, reference, LENGTHS, preference), RANKS, preference
        )

    pairs = [
        preference_loss(
            implicit_rewards(policy[[b, w]], reference[[b, w]], LENGTHS[[b, w]], preference),
            torch.tensor([1, 2]),
            preference,
        )
        for b, w in ((1, 0), (1, 3), (1, 2), (0, 2), (3, 2))
    ]
    assert loss(policy).item() == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-12)
    assert torch.autograd.gradcheck(loss, policy)
    order = torch.tensor([3, 1, 0, 2])
    mixed = preference_loss(
        implicit_rewards(policy[order], reference[order], LENGTHS[order], preference),
        RANKS[order],
        preference,
    )
    assert mixed.item() == pytest.approx(loss(policy).item(), rel=1e-12)


def test_dpo_is_the_reward_models_loss_of_the_implicit_rewards() -> None:
    rewards = torch.tensor([0.3, 1.0, -2.0, 0.1], dtype=torch.float64)
    expected = ranking_loss(rewards, RANKS)
    assert preference_loss(rewards, RANKS, DPO).item() == pytest.approx(expected.item())


def test_a_ranking_of_ties_has_no_loss_but_a_gradient_of_zero() -> None:
    rewards = torch.tensor([0.3, 1.0], requires_grad=True)
    loss = preference_loss(rewards, torch.tensor([1, 1]), DPO)
    loss.backward()
    assert loss.item() == 0.0
    assert rewards.grad is not None
    assert rewards.grad.tolist() == [0.0, 0.0]

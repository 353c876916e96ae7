"""Distillation as an estimator: hand values, and the gradient of the KL that it stands for."""

from __future__ import annotations

import torch

from workers.training.estimator import Tokens, token_advantages
from workers.training.estimators.distill import ESTIMATOR


def tokens(log_ratio: list[list[float]], mask: list[list[bool]]) -> Tokens:
    ratio = torch.tensor(log_ratio, dtype=torch.float64)
    # Rewards, a discount and a lambda that would show up if they counted.
    return Tokens(torch.full_like(ratio, 9.0), torch.tensor(mask), ratio, None, None, 1.0, 0.95)


def test_each_token_has_its_own_log_ratio_alone() -> None:
    found, returns = token_advantages(
        ESTIMATOR, tokens([[-0.5, 2.0, 0.25], [1.0, 7.0, 7.0]], [[True] * 3, [True, False, False]])
    )
    assert found.tolist() == [[0.5, -2.0, -0.25], [-1.0, 0.0, 0.0]]
    assert returns is None


def test_equal_models_leave_no_advantage_at_all() -> None:
    found, _ = token_advantages(ESTIMATOR, tokens([[0.0, 0.0]], [[True, True]]))
    assert found.abs().sum() == 0.0


def test_the_expected_gradient_is_that_of_the_reverse_kl() -> None:
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    own, other = student.log_softmax(0), teacher.log_softmax(0)
    (kl,) = torch.autograd.grad((own.exp() * (own - other)).sum(), student)
    ratio = (own - other).detach()
    every_token = tokens([[r] for r in ratio.tolist()], [[True]] * 7)
    advantages, _ = token_advantages(ESTIMATOR, every_token)
    own = student.log_softmax(0)
    # The expectation over the student's tokens of -A grad log p, term by term.
    loss = (own.exp().detach() * -advantages.squeeze(1) * own).sum()
    (found,) = torch.autograd.grad(loss, student)
    assert torch.allclose(found, kl, atol=1e-12)


def test_it_needs_a_teacher_and_nothing_else() -> None:
    assert ESTIMATOR.needs_teacher
    assert not ESTIMATOR.needs_reward
    assert not ESTIMATOR.needs_values
    assert not ESTIMATOR.whitens
    assert ESTIMATOR.needs_samples == 1

"""The optimizer of a single rank against AdamW with clipping, written out in fp64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from workers.records.specs import OptimizerSpec
from workers.training.whole_adamw import WholeAdamW, total_norm

SPEC = OptimizerSpec(0.02, (0.8, 0.9), 1e-6, 0.3, 1.5, "constant", 0, 0.1, 100)
SHAPES = ((5, 3), (7,), (2, 4))
DECAYED = (True, False, True)


@dataclass
class Oracle:
    """Masters and moments in fp64; `step` takes the gradients of a whole step."""

    masters: list[np.ndarray]

    def __post_init__(self) -> None:
        self.first = [np.zeros_like(w) for w in self.masters]
        self.second = [np.zeros_like(w) for w in self.masters]
        self.taken = 0

    def step(self, gradients: list[np.ndarray]) -> float:
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        self.taken += 1
        (one, two), rate = SPEC.betas, SPEC.learning_rate
        for i, g in enumerate(gradients):
            g = g * min(1.0, SPEC.max_grad_norm / norm)
            self.first[i] = one * self.first[i] + (1 - one) * g
            self.second[i] = two * self.second[i] + (1 - two) * g**2
            if DECAYED[i]:
                self.masters[i] = self.masters[i] * (1 - rate * SPEC.weight_decay)
            mean = self.first[i] / (1 - one**self.taken)
            square = self.second[i] / (1 - two**self.taken)
            self.masters[i] = self.masters[i] - rate * mean / (np.sqrt(square) + SPEC.eps)
        return norm


def make(dtype: torch.dtype) -> tuple[list[nn.Parameter], WholeAdamW, Oracle]:
    generator = torch.Generator().manual_seed(3)
    weights = [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]
    matrices = [w for w, decayed in zip(weights, DECAYED, strict=True) if decayed]
    groups = [{"params": matrices}, {"params": [weights[1]], "weight_decay": 0.0}]
    return weights, WholeAdamW(groups, SPEC), Oracle([w.detach().double().numpy() for w in weights])


def backward(weights: list[nn.Parameter], scale: float, seed: int) -> list[np.ndarray]:
    """Run one backward pass; the gradients that it gives, as the weights' dtype rounds them."""
    generator = torch.Generator().manual_seed(seed)
    wanted = [(scale * torch.randn(w.shape, generator=generator)).to(w.dtype) for w in weights]
    losses = [(w * g).sum().float() for w, g in zip(weights, wanted, strict=True)]
    torch.stack(losses).sum().backward()
    return [g.double().numpy() for g in wanted]


def assert_follows(optimizer: WholeAdamW, weights: list[nn.Parameter], oracle: Oracle) -> None:
    for i, weight in enumerate(weights):
        master = optimizer.master(weight)
        state = optimizer.state[master]
        for found, wanted in (
            (master, oracle.masters[i]),
            (state["exp_avg"], oracle.first[i]),
            (state["exp_avg_sq"], oracle.second[i]),
        ):
            np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=2e-6, atol=1e-7)
        assert float(state["step"]) == oracle.taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_of_several_passes_are_those_of_fp64(dtype: torch.dtype) -> None:
    weights, optimizer, oracle = make(dtype)
    norms = []
    for k, scale in enumerate((3.0, 0.1, 0.02, 2.0)):  # the second and third are not clipped
        passes = [backward(weights, scale, 10 * k + i) for i in range(3)]
        norm = oracle.step([sum(parts) for parts in zip(*passes, strict=True)])
        optimizer.step()
        assert not optimizer.overflow
        assert optimizer._global_grad_norm == pytest.approx(norm, rel=1e-6)
        assert_follows(optimizer, weights, oracle)
        norms.append(norm)
    assert [norm > SPEC.max_grad_norm for norm in norms] == [True, False, False, True]


def test_a_limit_of_zero_clips_nothing() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = WholeAdamW([{"params": [weight]}], replace(SPEC, max_grad_norm=0.0))
    (weight * 50.0).sum().backward()
    optimizer.step()
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"], torch.full((2, 2), 10.0))


def test_bf16_weights_are_their_masters_rounded_once() -> None:
    weights, optimizer, _ = make(torch.bfloat16)
    for k in range(3):
        backward(weights, 1.0, k)
        assert all(w.grad is None for w in weights)  # gradients are kept once, in fp32
        optimizer.step()
        for weight in weights:
            assert torch.equal(weight, optimizer.master(weight).bfloat16())
            assert optimizer.master(weight).dtype == torch.float32


def test_an_fp32_weight_has_no_second_copy() -> None:
    weights, optimizer, _ = make(torch.float32)
    assert all(optimizer.master(w) is w for w in weights)
    backward(weights, 1.0, 0)
    optimizer.step()
    assert all(w.grad is None for w in weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(dtype: torch.dtype, bad: float) -> None:
    weights, optimizer, oracle = make(dtype)
    first = backward(weights, 1.0, 1)
    oracle.step(first)
    optimizer.step()
    backward(weights, 1.0, 2)
    (weights[1][4] * bad).backward()
    optimizer.step()
    assert optimizer.overflow
    assert optimizer._global_grad_norm == math.inf
    assert_follows(optimizer, weights, oracle)
    oracle.step(backward(weights, 1.0, 3))  # nothing of the bad gradient is left
    optimizer.step()
    assert not optimizer.overflow
    assert_follows(optimizer, weights, oracle)


def test_a_weight_that_no_loss_depends_on_decays_with_a_gradient_of_zeros() -> None:
    weights, optimizer, oracle = make(torch.float32)
    gradients = [np.zeros(s) for s in SHAPES]
    gradients[1] = np.full(SHAPES[1], 2.0)
    (weights[1] * 2.0).sum().backward()
    oracle.step(gradients)
    optimizer.step()
    assert_follows(optimizer, weights, oracle)


def test_a_weight_that_is_used_twice_has_both_gradients() -> None:
    weight = nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    optimizer = WholeAdamW([{"params": [weight]}], SPEC)
    ((weight * 2.0).sum() + (weight.T * 3.0).sum()).backward()
    gradient = optimizer.master(weight).grad
    assert gradient is not None
    assert torch.equal(gradient, torch.full((2, 2), 5.0))


def test_no_hook_is_left_after_destroy() -> None:
    weights, optimizer, _ = make(torch.bfloat16)
    optimizer.destroy()
    backward(weights, 1.0, 0)
    assert all(w.grad is not None for w in weights)


def test_weights_and_moments_lie_in_one_piece_whatever_their_strides() -> None:
    weight = nn.Parameter(torch.randn(3, 4).T)
    before = weight.detach().clone()
    optimizer = WholeAdamW([{"params": [weight]}], SPEC)
    assert weight.is_contiguous()
    assert torch.equal(weight, before)
    (weight * torch.randn(4, 3)).sum().backward()
    optimizer.step()
    assert optimizer.state[weight]["exp_avg"].is_contiguous()


def test_the_norm_of_many_numbers_is_exact_in_fp32() -> None:
    values = torch.rand(3_000_001, generator=torch.Generator().manual_seed(0)) * 1e-3
    parts: list[Tensor] = [values[:10].view(2, 5), values[10:]]
    wanted = math.sqrt(float((values.double() ** 2).sum()))
    assert float(total_norm(parts)) == pytest.approx(wanted, rel=1e-6)

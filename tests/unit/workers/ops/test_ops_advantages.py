"""KL-shaped rewards and GAE against identities that hold without knowing the recursion."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.ops import gae, kl_shaped_rewards

NAN = float("nan")


def _rows(seed: int, rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random rewards and values, and a right-padded mask with NaN beyond it."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    values = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    mask = torch.arange(width) < lengths.unsqueeze(1)
    rewards[~mask] = NAN
    values[~mask] = NAN
    return rewards, values, mask


def test_shaped_rewards_of_literals() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, NAN], [-1.0, -1.0, -1.0]])
    reference = torch.tensor([[-2.0, -2.0, NAN], [-1.0, -1.0, -4.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = kl_shaped_rewards(torch.tensor([5.0, -1.0]), logprobs, reference, mask, beta=0.1)
    assert torch.allclose(rewards, torch.tensor([[-0.1, 5.0, 0.0], [0.0, 0.0, -1.3]]))


def test_score_sits_on_the_last_counted_token_even_beyond_a_hole() -> None:
    mask = torch.tensor([[False, True, False, True, False], [False] * 5])
    zeros = torch.zeros(2, 5)
    rewards = kl_shaped_rewards(torch.tensor([2.0, NAN]), zeros, zeros, mask, beta=1.0)
    assert rewards.tolist() == [[0.0, 0.0, 0.0, 2.0, 0.0], [0.0] * 5]


def test_shaped_rewards_refuse_misaligned_scores() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="scores"):
        kl_shaped_rewards(torch.zeros(2, 1), torch.zeros(2, 3), torch.zeros(2, 3), mask, 0.1)


def test_gae_of_literals() -> None:
    # By hand: deltas are 1 + .5*4 - 2 = 1 and 3 - 4 = -1; A_0 = 1 + .5*.5*(-1) = .75.
    advantages, returns = gae(
        torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 4.0]]),
        torch.ones(1, 2, dtype=torch.bool), gamma=0.5, lam=0.5,
    )  # fmt: skip
    assert advantages.tolist() == [[0.75, -1.0]]
    assert returns.tolist() == [[2.75, 3.0]]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_lambda_one_is_the_monte_carlo_return(seed: int, gamma: float) -> None:
    rewards, values, mask = _rows(seed, rows=4, width=7)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=1.0)
    for b in range(4):
        n = int(mask[b].sum())
        for t in range(n):
            discounted = sum(gamma**k * rewards[b, t + k].item() for k in range(n - t))
            assert returns[b, t].item() == pytest.approx(discounted, abs=1e-9)
            assert advantages[b, t].item() == pytest.approx(
                discounted - values[b, t].item(), abs=1e-9
            )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_lambda_zero_is_the_one_step_error(seed: int, gamma: float) -> None:
    rewards, values, mask = _rows(seed, rows=4, width=7)
    advantages, _ = gae(rewards, values, mask, gamma=gamma, lam=0.0)
    for b in range(4):
        n = int(mask[b].sum())
        row = [*values[b, :n].tolist(), 0.0]
        errors = [rewards[b, t].item() + gamma * row[t + 1] - row[t] for t in range(n)]
        assert advantages[b, :n].tolist() == pytest.approx(errors, abs=1e-9)


def test_a_perfect_critic_has_no_advantage() -> None:
    rewards = torch.tensor([[0.5, -1.0, 2.0]])
    values = torch.tensor([[1.5, 1.0, 2.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    for lam in (0.0, 0.3, 1.0):
        advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=lam)
        assert advantages.abs().max().item() < 1e-6
        assert torch.allclose(returns, values)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.booleans(), min_size=6, max_size=12))
def test_masked_holes_change_nothing(seed: int, pattern: list[bool]) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = sum(pattern)
    rewards = torch.randn(1, n, generator=generator, dtype=torch.float64)
    values = torch.randn(1, n, generator=generator, dtype=torch.float64)
    dense = gae(rewards, values, torch.ones(1, n, dtype=torch.bool), 0.9, 0.8)
    mask = torch.tensor([pattern])
    spread_rewards = torch.full((1, len(pattern)), NAN, dtype=torch.float64)
    spread_values = spread_rewards.clone()
    spread_rewards[mask], spread_values[mask] = rewards[0], values[0]
    for wide, narrow in zip(gae(spread_rewards, spread_values, mask, 0.9, 0.8), dense, strict=True):
        assert torch.equal(wide[mask], narrow[0])
        assert bool((wide[~mask] == 0).all())


def test_rows_are_independent_and_gradient_free() -> None:
    rewards, values, mask = _rows(3, rows=5, width=6)
    values.requires_grad_()
    advantages, returns = gae(rewards, values, mask, 0.99, 0.95)
    assert not advantages.requires_grad
    assert not returns.requires_grad
    order = torch.tensor([4, 2, 0, 1, 3])
    shuffled, _ = gae(rewards[order], values[order], mask[order], 0.99, 0.95)
    assert torch.equal(shuffled, advantages[order])


def test_empty_batches_pass_through() -> None:
    empty = torch.zeros(0, 0)
    advantages, returns = gae(empty, empty, empty.bool(), 1.0, 0.95)
    assert advantages.shape == returns.shape == (0, 0)

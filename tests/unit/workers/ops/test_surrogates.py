"""Surrogate losses of tokens, against literals, autograd and each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from workers.ops import (
    Clip,
    ResponseTokens,
    Surrogate,
    clip_surrogate,
    detached_surrogate,
    sequence_surrogate,
)

ALL = [clip_surrogate, sequence_surrogate, detached_surrogate]


def tokens_of(
    ratios: list[float], advantages: list[float], lengths: list[int] | None = None
) -> ResponseTokens:
    """Tokens whose old log-probabilities are -1, so that a detached logprob shows."""
    lengths = lengths or [1] * len(ratios)
    old = torch.full((len(ratios),), -1.0, dtype=torch.float64)
    new = (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    counts = torch.tensor(lengths, dtype=torch.int64)
    owner = torch.arange(len(lengths)).repeat_interleave(counts)
    return ResponseTokens(new, old, torch.tensor(advantages, dtype=torch.float64), owner, counts)


def slopes(tokens: ResponseTokens, terms: torch.Tensor) -> list[float]:
    (found,) = torch.autograd.grad(terms.sum(), tokens.logprobs)
    return found.tolist()


def test_the_two_sides_of_the_clip_have_their_own_bounds() -> None:
    tokens = tokens_of([1.5, 0.5, 1.5, 0.5, 1.25], [1.0, 1.0, -1.0, -1.0, 2.0])
    found = clip_surrogate(tokens, Clip(0.2, 0.3))
    assert found.terms.tolist() == pytest.approx([-1.3, -0.5, 1.5, 0.8, -2.5])
    assert found.clipped.tolist() == [True, False, False, True, False]
    assert slopes(tokens, found.terms) == pytest.approx([0.0, -0.5, 1.5, 0.0, -2.5])


def test_dual_clip_bounds_what_a_bad_token_can_cost() -> None:
    tokens = tokens_of([5.0, 2.0, 5.0], [-2.0, -2.0, 2.0])
    found = clip_surrogate(tokens, Clip(0.2, 0.2, dual=3.0))
    assert found.terms.tolist() == pytest.approx([6.0, 4.0, -2.4])
    assert found.clipped.tolist() == [True, False, True]
    assert slopes(tokens, found.terms) == pytest.approx([0.0, 4.0, 0.0])


def test_the_ratio_of_a_sequence_is_the_geometric_mean_of_its_tokens() -> None:
    # sqrt(2 * .5) = 1 for the first sequence, sqrt(2 * 1.125) = 1.5 for the second.
    tokens = tokens_of([2.0, 0.5, 2.0, 1.125], [1.0, 1.0, -3.0, -3.0], [2, 2])
    found = sequence_surrogate(tokens, Clip(0.2, 0.2))
    assert found.terms.tolist() == pytest.approx([-1.0, -1.0, 4.5, 4.5])
    assert found.clipped.tolist() == [False] * 4
    above = sequence_surrogate(tokens_of([2.0, 1.125], [1.0, 1.0], [2]), Clip(0.2, 0.2))
    assert above.terms.tolist() == pytest.approx([-1.2, -1.2])
    assert above.clipped.tolist() == [True, True]


def test_the_mean_of_a_sequence_has_the_gradient_of_the_sequence_objective() -> None:
    # -A s of each sequence, with s written out as exp of the mean of its log-ratios.
    tokens = tokens_of([1.1, 0.9, 1.05, 1.02], [0.7, 0.7, -0.4, -0.4], [3, 1])
    gains = torch.tensor([0.7, 0.7, 0.7, -0.4], dtype=torch.float64)
    tokens = ResponseTokens(
        tokens.logprobs, tokens.old_logprobs, gains, tokens.sequence, tokens.lengths
    )
    found = sequence_surrogate(tokens, Clip(0.5, 0.5)).terms
    mean = found[:3].mean() + found[3]
    (got,) = torch.autograd.grad(mean, tokens.logprobs, retain_graph=True)
    ratio = tokens.logprobs - tokens.old_logprobs
    plain = -0.7 * ratio[:3].mean().exp() + 0.4 * ratio[3].exp()
    (expected,) = torch.autograd.grad(plain, tokens.logprobs)
    assert mean.item() == pytest.approx(plain.item(), rel=1e-12)
    assert torch.allclose(got, expected, atol=1e-14)


def test_a_clipped_token_of_cispo_keeps_a_bounded_gradient() -> None:
    tokens = tokens_of([4.0, 1.5, 0.25], [1.0, -2.0, 3.0])
    found = detached_surrogate(tokens, Clip(0.5, 1.0))
    assert found.clipped.tolist() == [True, False, True]
    # -min(ratio, 2) A, and a ratio of at least .5; the value is that times the log-probability
    assert slopes(tokens, found.terms) == pytest.approx([-2.0, 3.0, -1.5])
    first = tokens.logprobs[0].item()
    assert found.terms[0].item() == pytest.approx(-2.0 * first) == -2.0 * (math.log(4.0) - 1.0)


@pytest.mark.parametrize("surrogate", ALL)
def test_at_the_first_update_the_gradient_is_that_of_the_policy_gradient(
    surrogate: Callable[[ResponseTokens, Clip], Surrogate],
) -> None:
    tokens = tokens_of([1.0, 1.0, 1.0], [0.5, -2.0, 1.5])
    found = surrogate(tokens, Clip(0.2, 0.2))
    assert slopes(tokens, found.terms) == pytest.approx([-0.5, 2.0, -1.5], abs=1e-15)
    assert not found.clipped.any()


@pytest.mark.parametrize("surrogate", ALL)
def test_a_batch_without_sequences_has_a_loss_of_zero_that_depends_on_the_model(
    surrogate: Callable[[ResponseTokens, Clip], Surrogate],
) -> None:
    tokens = tokens_of([], [], [])
    terms = surrogate(tokens, Clip(0.2, 0.2)).terms
    assert terms.sum().item() == 0.0
    terms.sum().backward()
    assert tokens.logprobs.grad is not None


@pytest.mark.parametrize("surrogate", ALL)
def test_far_ratios_are_bounded_and_broken_ones_show(
    surrogate: Callable[[ResponseTokens, Clip], Surrogate],
) -> None:
    far = tokens_of([math.exp(80.0)], [-1.0])
    assert surrogate(far, Clip(0.2, 0.2)).terms.isfinite().all()
    broken = tokens_of([math.nan, 1.0], [-1.0, 1.0])
    assert not surrogate(broken, Clip(0.2, 0.2)).terms[0].isfinite()

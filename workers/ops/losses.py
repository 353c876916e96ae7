"""The losses of the recipe: ranking, clipped policy and clipped value.

Each is a sum over its counted items divided by `denominator`. Callers that split a batch over
micro-batches or ranks pass the count of the whole optimizer step, so that the split does not change
the gradient; None means the count of the arguments.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from workers.ops.kl import bounded_log_ratio, masked_log_ratio
from workers.ops.masks import check_aligned, masked_sum
from workers.ops.soft_labels import soft_ranking_loss
from workers.ops.surrogates import Clip, clipped_terms


def _average(total: Tensor, own_count: Tensor | int, denominator: float | None) -> Tensor:
    if denominator is None:
        # If nothing counts, sum and loss are 0, but still connected to the graph.
        return total / max(int(own_count), 1)
    if denominator <= 0:
        raise ValueError(f"denominator={denominator} must be positive")
    return total / denominator


def importance_weights(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    mask: Tensor,
    cap: float,
    floor: float = 0.0,
    *,
    drop: bool = False,
) -> tuple[Tensor, Tensor]:
    """Weights `w_t = clip(exp(old_t - rollout_t), f, C)` that correct for the sampling policy.

    PPO's surrogate expects tokens of the proximal (old) policy; those of an engine come from an
    older or numerically different one. The ratio of the two is decoupled from PPO's ratio (Hilton
    et al., arXiv 2110.00641, section 3) and truncated from above, which bounds the variance at the
    price of a bias towards the sampling policy (Ionides 2008; for RL from rollouts, Espeholt et
    al., arXiv 1802.01561, section 4.1).

    Args:
        old_logprobs: (B, T) nats, the trainer's before the first update of the batch.
        rollout_logprobs: (B, T) nats, of the engine that sampled the tokens.
        mask: (B, T) bool; True = response token.
        cap: C, dimensionless.
        floor: f, dimensionless, at most the cap.
        drop: tokens outside the bounds get weight 0 instead.

    Returns:
        (B, T) weights, without gradient, 0 at masked positions; and (B, T) bool, tokens at or
        beyond a bound.

    Raises:
        ValueError: shapes do not match, or not 0 <= floor <= cap, 0 < cap.
    """
    check_aligned(mask, old_logprobs=old_logprobs, rollout_logprobs=rollout_logprobs)
    if not (0 <= floor <= cap and cap > 0):
        raise ValueError(f"cap={cap} must be positive, and floor={floor} from 0 to the cap")
    zero = torch.zeros_like(old_logprobs)
    log_weights = torch.where(mask, old_logprobs - rollout_logprobs, zero).detach()
    ratio = bounded_log_ratio(log_weights).exp()
    outside = mask & ((ratio >= cap) | (ratio < floor))
    kept = torch.where(outside, zero, ratio) if drop else ratio.clamp(min=floor, max=cap)
    return torch.where(mask, kept, zero), outside


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    *,
    weights: Tensor | None = None,
    denominator: float | None = None,
) -> Tensor:
    """Clipped surrogate `mean_t w_t max(-A_t rho_t, -A_t clip(rho_t, 1 - c, 1 + c))`.

    `rho_t = exp(logprob_t - old_logprob_t)` (Schulman et al., arXiv 1707.06347, equation 7, with
    the sign of a loss), the exponent clamped to +-20; `w_t = 1` unless weights are given.

    Args:
        logprobs: (B, T) nats, carries the gradient.
        old_logprobs: (B, T) nats, before the first update of the batch.
        advantages: (B, T), whitened or not.
        mask: (B, T) bool; True = response token.
        clip: c, dimensionless.
        weights: (B, T) w, from `importance_weights`; None = 1 for all tokens.
        denominator: tokens to divide by; None = the counted tokens of `mask`.

    Returns:
        Scalar loss.

    Raises:
        ValueError: shapes do not match, or the denominator is not positive.
    """
    check_aligned(mask, advantages=advantages)
    ratio = masked_log_ratio(logprobs, old_logprobs, mask).exp()
    advantages = torch.where(mask, advantages, torch.zeros_like(advantages))
    terms = clipped_terms(ratio, advantages, Clip(clip, clip)).terms
    if weights is not None:
        check_aligned(mask, weights=weights)
        terms = terms * torch.where(mask, weights, torch.zeros_like(weights))
    return _average(masked_sum(terms, mask), mask.sum(), denominator)


def value_terms(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Plain and clipped squared errors of each token (shapes of the mask)."""
    check_aligned(mask, values=values, old_values=old_values, returns=returns)
    zero = torch.zeros_like(values)
    values = torch.where(mask, values, zero)
    old_values = torch.where(mask, old_values, zero)
    returns = torch.where(mask, returns, zero)
    near = old_values + (values - old_values).clamp(-clip, clip)
    return (values - returns).square(), (near - returns).square()


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip: float,
    *,
    denominator: float | None = None,
) -> Tensor:
    """Clipped squared error `mean_t max((V - R)^2, (V_old + clip(V - V_old, +-c) - R)^2) / 2`.

    As in OpenAI's baselines and lm-human-preferences; not part of the PPO paper.

    Args:
        values: (B, T) reward units, carries the gradient.
        old_values: (B, T) reward units, before the first update of the batch.
        returns: (B, T) reward units.
        mask: (B, T) bool; True = response token.
        clip: c, reward units.
        denominator: tokens to divide by; None = the counted tokens of `mask`.

    Returns:
        Scalar loss, reward units squared.

    Raises:
        ValueError: shapes do not match, or the denominator is not positive.
    """
    plain, clipped = value_terms(values, old_values, returns, mask, clip)
    return _average(masked_sum(torch.maximum(plain, clipped), mask) / 2, mask.sum(), denominator)


def _pairs(scores: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (better, worse) of every pair that is not a tie."""
    if scores.ndim != 1 or scores.shape != ranks.shape:
        raise ValueError(
            f"scores {tuple(scores.shape)} and ranks {tuple(ranks.shape)} must be (K,)"
        )
    better, worse = (ranks.unsqueeze(1) < ranks.unsqueeze(0)).nonzero(as_tuple=True)
    return better, worse


def ranking_loss(scores: Tensor, ranks: Tensor, levels: Tensor | None = None) -> Tensor:
    """Mean over the pairs of one prompt of `-log sigmoid(s_better - s_worse - m)`; ties drop out.

    InstructGPT (arXiv 2203.02155, equation 1): all pairs of a prompt are one element of the batch.
    The margin m is that of Llama 2 (arXiv 2307.09288, equation 2).

    Args:
        scores: (K,) reward units, carries the gradient.
        ranks: (K,) integers, 1 = best, equal = tie.
        levels: (K,) reward units; m = level of the better less that of the worse, limited to
            0 .. 1. None: m = 0.

    Returns:
        Scalar loss, nats per pair; 0 (with zero gradient) when all completions tie.

    Raises:
        ValueError: the arguments are not vectors of equal length.
    """
    better, worse = _pairs(scores, ranks)
    margins = 0.0 if levels is None else (levels[better] - levels[worse]).clamp(0.0, 1.0)
    losses = softplus(scores[worse] - scores[better] + margins)
    return losses.sum() / max(len(better), 1)


def rankings_loss(
    scores: Sequence[Tensor],
    ranks: Sequence[Tensor],
    *,
    levels: Sequence[Tensor | None] | None = None,
    probabilities: Sequence[Tensor | None] | None = None,
    denominator: float | None = None,
) -> Tensor:
    """Mean of `ranking_loss` over the prompts that kept at least one pair.

    Where a prompt has probabilities, `soft_ranking_loss` takes its place.

    Args:
        scores: one (K_i,) vector per prompt; at least one prompt.
        ranks: one (K_i,) vector per prompt.
        levels: for the margins, one (K_i,) vector or None per prompt; None = no margins.
        probabilities: of pairs, one (K_i, K_i) matrix or None per prompt, without margins.
        denominator: prompts to divide by; None = the prompts with a kept pair.

    Returns:
        Scalar loss, nats per pair.

    Raises:
        ValueError: no prompt, lengths differ, margins meet probabilities, or the denominator is
            not positive.
    """
    if not scores:
        raise ValueError("no ranking")
    none = [None] * len(scores)
    each = zip(scores, ranks, levels or none, probabilities or none, strict=True)
    total = torch.stack([_of_prompt(*one) for one in each]).sum()
    if denominator is None and probabilities is not None:
        raise ValueError("soft labels need the number of prompts that have a pair")
    kept = sum(bool((r != r[0]).any()) for r in ranks)
    return _average(total, kept, denominator)


def _of_prompt(
    scores: Tensor, ranks: Tensor, levels: Tensor | None, probabilities: Tensor | None
) -> Tensor:
    if probabilities is None:
        return ranking_loss(scores, ranks, levels)
    if levels is not None:
        raise ValueError("a pair with a probability has no margin")
    return soft_ranking_loss(scores, probabilities)


def pair_accuracy(scores: Tensor, ranks: Tensor) -> tuple[int, int]:
    """Count the pairs of one prompt that the scores order as the ranks do.

    Args:
        scores: (K,) reward units; a pair with equal scores counts as wrong.
        ranks: (K,) integers, 1 = best; tied pairs are dropped.

    Returns:
        (correctly ordered pairs, kept pairs).
    """
    better, worse = _pairs(scores, ranks)
    return int((scores[better] > scores[worse]).sum()), len(better)

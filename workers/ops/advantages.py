"""KL-shaped token rewards, and advantages and returns by GAE."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.ops.kl import kl_estimate
from workers.ops.masks import check_aligned


def kl_shaped_rewards(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    beta: float,
    token_scores: Tensor | None = None,
) -> Tensor:
    """Token rewards `-beta * (logprob - ref_logprob)`, plus the score on the last counted token.

    Summed over a sequence this is `r(x, y) - beta * log(pi(y|x) / pi_ref(y|x))`, the objective of
    InstructGPT (arXiv 2203.02155, equation 2) without its pretraining term.

    Args:
        scores: (B,) reward units.
        logprobs: (B, T) nats, policy.
        ref_logprobs: (B, T) nats, reference model, same tokens.
        mask: (B, T) bool; True = response token. A row without True is a dummy: all zeros.
        beta: reward units per nat.
        token_scores: (B, T) reward units: the parts of the score that are given at tokens of their
            own (process rewards); the last counted token gets the rest, so sums stay as they are.

    Returns:
        (B, T) reward units; 0 at masked positions. No gradient flows.

    Raises:
        ValueError: shapes do not match.
    """
    check_aligned(mask, logprobs=logprobs, ref_logprobs=ref_logprobs)
    if scores.shape != mask.shape[:1]:
        raise ValueError(f"scores are {tuple(scores.shape)}, the mask has {mask.shape[0]} rows")
    if token_scores is not None:
        check_aligned(mask, token_scores=token_scores)
    with torch.no_grad():
        # Counted from the right, the last token of a row is its first True.
        last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
        rewards = -beta * kl_estimate(logprobs, ref_logprobs, "k1")
        if token_scores is not None:
            given = torch.where(mask, token_scores, torch.zeros_like(token_scores))
            rewards = rewards + given
            scores = scores - given.sum(1)
        rewards = torch.where(last, rewards + scores.unsqueeze(1), rewards)
        return torch.where(mask, rewards, torch.zeros_like(rewards))


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and the returns that the critic fits.

    `A_t = delta_t + gamma * lam * A_next` with `delta_t = r_t + gamma * V_next - V_t`, and
    `R_t = A_t + V_t`, where *next* is the next counted token of the row and both are 0 after the
    last one (Schulman et al., arXiv 1506.02438, equation 16). Masked positions are skipped, not
    treated as states of value 0: masked positions inside a row do not change the results.

    Args:
        rewards: (B, T) reward units.
        values: (B, T) reward units, the critic's estimate before each token.
        mask: (B, T) bool; True = counts.
        gamma: discount per token.
        lam: 0 = one-step errors, 1 = Monte Carlo return minus value.

    Returns:
        (advantages, returns), both (B, T), 0 at masked positions. No gradient flows.

    Raises:
        ValueError: shapes do not match.
    """
    check_aligned(mask, rewards=rewards, values=values)
    with torch.no_grad():
        advantages = torch.zeros_like(values)
        next_advantage = values.new_zeros(mask.shape[0])
        next_value = torch.zeros_like(next_advantage)
        for t in reversed(range(mask.shape[1])):
            counts = mask[:, t]
            delta = rewards[:, t] + gamma * next_value - values[:, t]
            advantage = delta + gamma * lam * next_advantage
            next_advantage = torch.where(counts, advantage, next_advantage)
            next_value = torch.where(counts, values[:, t], next_value)
            advantages[:, t] = torch.where(counts, advantage, torch.zeros_like(advantage))
        returns = torch.where(mask, advantages + values, torch.zeros_like(values))
        return advantages, returns

"""Statistics of the PPO losses, as sums over tokens, so that those of shards can be added."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from workers.ops.kl import kl_estimate, masked_log_ratio
from workers.ops.losses import value_terms
from workers.ops.masks import masked_sum


class RatioStats(NamedTuple):
    """Sums over counted tokens (0-dim tensors), except `ratio_max`, a maximum."""

    tokens: Tensor  # counted tokens
    approx_kl: Tensor  # k3 estimate of KL(old || new), nats
    ratio: Tensor  # new / old probability
    ratio_max: Tensor  # 0 when nothing counts


def ratio_stats(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> RatioStats:
    """Approximate KL and probability ratios of an updated policy.

    Args:
        logprobs: (B, T) nats.
        old_logprobs: (B, T) nats, of the policy that sampled the tokens.
        mask: (B, T) bool; True = response token.

    Returns:
        Sums over counted tokens; divide by the tokens of the step for means.
    """
    with torch.no_grad():
        log_ratio = masked_log_ratio(logprobs, old_logprobs, mask)
        ratio = log_ratio.exp()
        return RatioStats(
            tokens=mask.sum(),
            # The tokens come from the old policy, so it is the first argument.
            approx_kl=masked_sum(kl_estimate(torch.zeros_like(log_ratio), log_ratio, "k3"), mask),
            ratio=masked_sum(ratio, mask),
            ratio_max=(ratio * mask).max() if mask.numel() else ratio.new_zeros(()),
        )


class ValueStats(NamedTuple):
    """Sums over counted tokens (0-dim tensors) of the critic's fit."""

    tokens: Tensor
    clipped: Tensor  # tokens whose gradient the clip removed
    error: Tensor  # return - value
    error_square: Tensor
    target: Tensor  # return
    target_square: Tensor

    def explained_variance(self) -> float:
        """`1 - Var(R - V) / Var(R)`: 1 = perfect, 0 = no better than a constant.

        0 when the returns do not vary: there is no variance to explain.
        """
        n = float(self.tokens)
        if n == 0:
            return 0.0
        error_variance = float(self.error_square) / n - (float(self.error) / n) ** 2
        target_variance = float(self.target_square) / n - (float(self.target) / n) ** 2
        return 1.0 - error_variance / target_variance if target_variance > 0 else 0.0


def value_stats(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float
) -> ValueStats:
    """Clip count and the moments of errors and returns, for the arguments of `value_loss`.

    Args:
        values: (B, T) reward units.
        old_values: (B, T) reward units.
        returns: (B, T) reward units.
        mask: (B, T) bool; True = response token.
        clip: reward units.

    Returns:
        Sums over counted tokens, in fp64: the variances are differences of large sums.
    """
    with torch.no_grad():
        plain, clipped = value_terms(values, old_values, returns, mask, clip)
        target = returns.double()
        error = target - values
        return ValueStats(
            tokens=mask.sum(),
            clipped=((clipped > plain) & mask).sum(),
            error=masked_sum(error, mask),
            error_square=masked_sum(error.square(), mask),
            target=masked_sum(target, mask),
            target_square=masked_sum(target.square(), mask),
        )

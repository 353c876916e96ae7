"""KL divergence from the reference policy: estimators, and a controller of its coefficient."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from workers.ops.masks import check_aligned

KLKind = Literal["k1", "k2", "k3"]

MOST_NATS = 20.0  # a ratio of 5e8; in fp32 exp overflows at 88.7, and its gradient is then NaN


def bounded_log_ratio(log_ratio: Tensor) -> Tensor:
    """Clamp a log-ratio to +-20 nats, so that `exp` is finite; the gradient is 0 beyond.

    Infinities and NaN are kept: they come from a broken model and must be detected.

    Args:
        log_ratio: (...) nats.
    """
    clamped = log_ratio.clamp(-MOST_NATS, MOST_NATS)
    return torch.where(log_ratio.isinf(), log_ratio, clamped)


def masked_log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """`logprobs - old_logprobs`, bounded; 0 at masked positions.

    Args:
        logprobs: (B, T) nats.
        old_logprobs: (B, T) nats.
        mask: (B, T) bool; True = counts.

    Raises:
        ValueError: shapes do not match.
    """
    check_aligned(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    # Masked inputs are replaced before exp, because their infinities would give NaN gradients.
    ratio = torch.where(mask, logprobs - old_logprobs, torch.zeros_like(logprobs))
    return bounded_log_ratio(ratio)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KLKind = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens sampled by the policy.

    With `d = logprobs - ref_logprobs`: k1 = `d` (unbiased, may be negative), k2 = `d^2 / 2`
    (biased, low variance), k3 = `exp(-d) - 1 + d` (unbiased, never negative; the exponent is
    clamped to +-20). Source: J. Schulman, "Approximating KL divergence", 2020.

    Args:
        logprobs: (...) nats, of the policy that sampled the tokens.
        ref_logprobs: (...) nats, same tokens, other distribution.
        kind: k1, k2 or k3.

    Returns:
        (...) nats.

    Raises:
        ValueError: shapes differ, or the kind is unknown.
    """
    if logprobs.shape != ref_logprobs.shape:
        raise ValueError(
            f"logprobs are {tuple(logprobs.shape)}, ref_logprobs {tuple(ref_logprobs.shape)}"
        )
    d = logprobs - ref_logprobs
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        # expm1: near d = 0, cancellation would destroy all digits of exp(-d) - 1.
        return torch.expm1(bounded_log_ratio(-d)) + d
    raise ValueError(f"unknown KL estimator {kind!r}: use k1, k2 or k3")


class AdaptiveKLController:
    """Adapts the KL coefficient so that the mean KL per sequence approaches a target.

    `beta <- beta * (1 + clip(KL / target - 1, -.2, .2) * n / horizon)` after n sequences
    (Ziegler et al., arXiv 1909.08593, section 2.2).

    Attributes:
        value: the current coefficient, reward units per nat.
    """

    def __init__(self, initial: float, target: float, horizon: float) -> None:
        if initial < 0 or target <= 0 or horizon <= 0:
            raise ValueError(
                f"need initial >= 0, target > 0, horizon > 0; got {initial}, {target}, {horizon}"
            )
        self.value: float = initial
        self.target: float = target
        self.horizon: float = horizon

    def update(self, kl: float, n: int) -> float:
        """Update for n more sequences with mean KL `kl` (nats per sequence); returns the new value.

        Raises:
            ValueError: `kl` is not finite, or n is so large (5 horizons) that the coefficient
                could become negative.
        """
        if not math.isfinite(kl):
            raise ValueError(f"mean KL of the batch is {kl}")
        if not 0 <= n < 5 * self.horizon:
            raise ValueError(f"n={n} sequences per update need a horizon above {n / 5:g}")
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.value *= 1.0 + error * n / self.horizon
        return self.value

    def state_dict(self) -> dict[str, float]:
        """State for a resumed run: the current coefficient."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from a saved coefficient."""
        self.value = float(state["value"])

"""Surrogate losses of single tokens, from which the policy's loss is averaged.

Tokens of several sequences lie end to end in vectors (N,); all of them count. At the first update
of a batch, when the policy is still the one that sampled, all give the same gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from workers.ops.kl import bounded_log_ratio


@dataclass(frozen=True, slots=True)
class ResponseTokens:
    """The response tokens of some sequences, end to end."""

    logprobs: Tensor  # (N,) nats, carries the gradient
    old_logprobs: Tensor  # (N,) nats, before the first update of the batch
    advantages: Tensor  # (N,)
    sequence: Tensor  # (N,) int64, 0 to B - 1
    lengths: Tensor  # (B,) int64, tokens of each sequence


@dataclass(frozen=True, slots=True)
class Clip:
    """Bounds of the probability ratio: 1 - low .. 1 + high."""

    low: float
    high: float
    dual: float | None = None  # most that a token of negative advantage A costs: dual * |A|


class Surrogate(NamedTuple):
    """What a loss function returns."""

    terms: Tensor  # (N,) loss of each token
    clipped: Tensor  # (N,) bool, tokens whose ratio was clipped


def clip_surrogate(tokens: ResponseTokens, clip: Clip) -> Surrogate:
    """`max(-A rho, -A clip(rho, 1 - low, 1 + high))` with `rho = exp(logprob - old_logprob)`.

    PPO (Schulman et al., arXiv 1707.06347, equation 7); separate bounds as in DAPO (Yu et al.,
    arXiv 2503.14476, equation 10); `dual` bounds the loss where A is negative (Ye et al., arXiv
    1912.09729, equation 5).
    """
    return clipped_terms(_log_ratio(tokens).exp(), tokens.advantages, clip)


def sequence_surrogate(tokens: ResponseTokens, clip: Clip) -> Surrogate:
    """The clipped surrogate with one ratio per sequence, the geometric mean of its tokens' ratios.

    GSPO (Zheng et al., arXiv 2507.18071, equations 5 and 7), in the form for advantages per token
    (equation 14): `s_t = sg(s) rho_t / sg(rho_t)` has the value of s and the gradient of token t.
    Averaged over the tokens of each sequence, the gradient is that of equation 7.
    """
    log_ratio = _log_ratio(tokens)
    sums = log_ratio.new_zeros(len(tokens.lengths)).index_add(
        0, tokens.sequence, log_ratio.detach()
    )
    means = (sums / tokens.lengths.clamp(min=1))[tokens.sequence]
    ratio = means.exp() * (log_ratio - log_ratio.detach()).exp()
    return clipped_terms(ratio, tokens.advantages, clip)


def detached_surrogate(tokens: ResponseTokens, clip: Clip) -> Surrogate:
    """`-sg(clip(rho, 1 - low, 1 + high)) A logprob`: clipped tokens keep a bounded gradient.

    CISPO (MiniMax, arXiv 2506.13585, equations 4 and 5).
    """
    ratio = _log_ratio(tokens).detach().exp()
    bounded = ratio.clamp(1.0 - clip.low, 1.0 + clip.high)
    return Surrogate(-bounded * tokens.advantages * tokens.logprobs, bounded != ratio)


def _log_ratio(tokens: ResponseTokens) -> Tensor:
    return bounded_log_ratio(tokens.logprobs - tokens.old_logprobs)


def clipped_terms(ratio: Tensor, advantages: Tensor, clip: Clip) -> Surrogate:
    """The clipped surrogate of given ratios; all tensors have one shape."""
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1.0 - clip.low, 1.0 + clip.high)
    terms, clipped = torch.maximum(plain, bounded), bounded > plain
    if clip.dual is None:
        return Surrogate(terms, clipped)
    most = -advantages * clip.dual
    cut = (advantages < 0) & (terms > most)
    return Surrogate(torch.where(cut, most, terms), clipped | cut)

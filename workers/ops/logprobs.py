"""Log-probabilities and entropies from logits."""

from __future__ import annotations

import torch
from torch import Tensor


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive")
    # In half precision, the normaliser would lose its small terms: reduce in fp32 (or fp64).
    wide = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    return wide if temperature == 1.0 else wide / temperature


def token_logprobs(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each label, `z_y - log sum_v exp z_v` with `z = logits / temperature`.

    The inputs must be aligned: `logits[..., t, :]` is the model's prediction of `labels[..., t]`,
    its output at the position before that token. The full log-softmax is never stored.

    Args:
        logits: (..., V).
        labels: (...) int64 in [0, V).
        temperature: the sampling temperature; divides logits.

    Returns:
        (...) nats, at least fp32.

    Raises:
        ValueError: shapes do not match, or the temperature is not positive.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: want (..., V), (...)"
        )
    z = _scaled(logits, temperature)
    chosen = z.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return chosen - torch.logsumexp(z, dim=-1)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of each next-token distribution, `-sum_v p_v log p_v`.

    Args:
        logits: (..., V); minus infinity excludes a token.
        temperature: the sampling temperature; divides logits.

    Returns:
        (...) nats, between 0 and log V.
    """
    logp = torch.log_softmax(_scaled(logits, temperature), dim=-1)
    p = logp.exp()
    # An excluded token has p = 0 and log p = -inf: their product is NaN, but p log p tends to 0.
    return -(p * logp.masked_fill(p == 0, 0.0)).sum(-1)

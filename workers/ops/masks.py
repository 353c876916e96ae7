"""Masked sums, means and whitening."""

from __future__ import annotations

import torch
from torch import Tensor


def check_aligned(mask: Tensor, **tensors: Tensor) -> None:
    """Require a boolean mask and tensors of exactly its shape.

    Silent broadcasting of (B, 1) against (B, T) is a common bug in such losses, so shapes must be
    equal.

    Raises:
        TypeError: the mask is not boolean.
        ValueError: a tensor has another shape than the mask.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True = counts), got {mask.dtype}")
    for name, tensor in tensors.items():
        if tensor.shape != mask.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, its mask {tuple(mask.shape)}")


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of the counted positions, `sum_i [mask_i] x_i`.

    Args:
        x: any shape, any unit.
        mask: same shape, bool; True = counts.
        dim: the axis to reduce; None = all.

    Returns:
        The sum, 0 where nothing counts. Masked positions get a gradient of exactly 0.
    """
    check_aligned(mask, x=x)
    # torch.where instead of a product: 0 * NaN is NaN.
    kept = torch.where(mask, x, torch.zeros_like(x))
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the counted positions, `sum_i [mask_i] x_i / sum_i [mask_i]`.

    Args:
        x: any shape, any unit.
        mask: same shape, bool; True = counts.
        dim: the axis to reduce; None = all.

    Returns:
        The mean; 0 where nothing counts, so that a dummy row stays finite.
    """
    total = masked_sum(x, mask, dim)
    count = mask.sum() if dim is None else mask.sum(dim)
    return total / count.clamp(min=1)


def whiten(
    x: Tensor,
    mask: Tensor,
    shift_mean: bool = True,
    eps: float = 1e-8,
    *,
    moments: tuple[float, float] | None = None,
) -> Tensor:
    """Scale the counted positions to unit variance, `(x - mean) / sqrt(var + eps)`.

    The variance is biased (divided by the count), as in lm-human-preferences (arXiv 1909.08593).

    Args:
        x: any shape.
        mask: same shape, bool; True = counts.
        shift_mean: True centres on 0; False adds the original mean again after scaling.
        eps: added to the variance; a constant input becomes its mean (or 0), not NaN.
        moments: mean and standard deviation of the whole batch if x is a part; None = those of x.

    Returns:
        Same shape; 0 at masked positions.
    """
    if moments is None:
        mean = masked_mean(x, mask)
        centred = x - mean
        scaled = centred * torch.rsqrt(masked_mean(centred.square(), mask) + eps)
    else:
        check_aligned(mask, x=x)
        mean, deviation = moments
        scaled = (x - mean) / deviation
    result = scaled if shift_mean else scaled + mean
    return torch.where(mask, result, torch.zeros_like(result))

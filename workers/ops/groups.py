"""Statistics of the samples of each prompt; a group is the samples of one prompt."""

from __future__ import annotations

import torch
from torch import Tensor


def less_group_mean(values: Tensor, group: Tensor) -> Tensor:
    """Each value less the mean of its group.

    Args:
        values: (B,) one number per sample.
        group: (B,) int64, 0 to G - 1; groups may differ in size, in any order.

    Returns:
        (B,) in the unit of the values.

    Raises:
        ValueError: the arguments are not vectors of one length.
    """
    counts, sums = _sums(values, group)
    return values - (sums / counts)[group]


def less_others_mean(values: Tensor, group: Tensor) -> Tensor:
    """Each value less the mean of the others in its group, `G / (G - 1)` of `less_group_mean`.

    Args:
        values: (B,) one number per sample.
        group: (B,) int64, 0 to G - 1.

    Returns:
        (B,) in the unit of the values.

    Raises:
        ValueError: the arguments are not vectors of one length, or a group has a single sample,
            which has nothing to be compared with.
    """
    counts, sums = _sums(values, group)
    _several(counts)
    return values - (sums[group] - values) / (counts[group] - 1)


def group_deviations(values: Tensor, group: Tensor) -> Tensor:
    """Standard deviation of the group of each value, of a sample (divided by G - 1).

    Args:
        values: (B,) one number per sample.
        group: (B,) int64, 0 to G - 1.

    Returns:
        (B,) in the unit of the values.

    Raises:
        ValueError: the arguments are not vectors of one length, or a group has a single sample.
    """
    counts, _ = _sums(values, group)
    _several(counts)
    squares = torch.zeros_like(counts).index_add(0, group, less_group_mean(values, group).square())
    return (squares / (counts - 1)).sqrt()[group]


def _sums(values: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """(G,) samples and sum of each group."""
    if values.ndim != 1 or values.shape != group.shape:
        raise ValueError(f"values {tuple(values.shape)}, groups {tuple(group.shape)}: need (B,)")
    zeros = values.new_zeros(int(group.max()) + 1 if len(group) else 0)
    ones = torch.ones_like(values)
    return zeros.index_add(0, group, ones), zeros.index_add(0, group, values)


def _several(counts: Tensor) -> None:
    if bool((counts == 1).any()):
        raise ValueError("a group has a single sample")

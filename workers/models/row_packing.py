"""Assignment of sequences to rows and forward passes by their lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workers.records.arrays import IntArray


def first_fit(sizes: Sequence[int] | IntArray, room: int) -> list[IntArray]:
    """Put items into bins, longest first, each into the first bin that has room for it.

    Uses at most 11/9 of the fewest possible bins, plus one (Johnson 1973).

    Args:
        sizes: (B,) size of each item, such as tokens.
        room: capacity of a bin; a larger item gets a separate bin.

    Returns:
        Items of each bin, in the order of insertion; every item exactly once.
    """
    bins: list[list[int]] = []
    left: list[int] = []
    for item in np.argsort(-np.asarray(sizes, np.int64), kind="stable").tolist():
        size = int(sizes[item])
        at = next((i for i, free in enumerate(left) if free >= size), len(bins))
        if at == len(bins):
            bins.append([])
            left.append(room)
        bins[at].append(item)
        left[at] -= size
    return [np.asarray(each, np.int64) for each in bins]


def token_budget_batches(lengths: IntArray, budget: int, *, packed: bool = False) -> list[IntArray]:
    """Split rows into batches within a token budget.

    Padded rows are sorted by length, and a batch costs rows * longest row; packed rows cost their
    sum. A row longer than the budget is a batch by itself.

    Args:
        lengths: (B,) tokens of each row.
        budget: Maximum tokens per batch, padding included.
        packed: Whether the rows of a batch will be packed end to end.

    Returns:
        Row indices of each batch; every row appears exactly once.
    """
    if packed:
        return first_fit(lengths, budget)
    batches: list[IntArray] = []
    start = 0
    order = np.argsort(lengths, kind="stable")
    for end in range(1, len(order) + 1):
        full = end == len(order) or (end + 1 - start) * lengths[order[end]] > budget
        if full:
            batches.append(order[start:end])
            start = end
    return batches

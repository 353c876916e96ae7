"""Ties between completions that are equal as tokens."""

from __future__ import annotations

from collections.abc import Sequence


def tied_ranks(completions: Sequence[Sequence[int]], ranks: Sequence[int]) -> tuple[int, ...]:
    """Ranks in which equal completions tie.

    Equal completions with different ranks span a range of ranks, and all completions within the
    range tie with them: one that is better than the first copy and worse than the second is neither
    better nor worse. Overlapping ranges are merged.

    Args:
        completions: K token sequences.
        ranks: K ranks, 1 = best, equal = tie.

    Returns:
        K ranks from 1 on, without gaps.
    """
    spans: dict[tuple[int, ...], tuple[int, int]] = {}
    for completion, rank in zip(map(tuple, completions), ranks, strict=True):
        low, high = spans.get(completion, (rank, rank))
        spans[completion] = (min(low, rank), max(high, rank))
    merged: list[list[int]] = []
    for low, high in sorted(spans.values()):
        if merged and low <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], high)
        else:
            merged.append([low, high])
    place = {
        rank: number
        for number, (low, high) in enumerate(merged, 1)
        for rank in ranks
        if low <= rank <= high
    }
    return tuple(place[rank] for rank in ranks)

"""Moments of the advantages of a batch that is split into shards; without torch, for the driver."""

from __future__ import annotations

import math
from collections.abc import Sequence

from workers.records.training import ExperienceSummary


def whitening_moments(
    summaries: Sequence[ExperienceSummary], eps: float = 1e-8
) -> tuple[float, float]:
    """Mean and standard deviation for whitening the advantages of a batch split into shards.

    `(A - mean) / std` then equals `ops.whiten` of the whole batch: `std = sqrt(var + eps)`, biased.

    Raises:
        ValueError: no shard has a counted token.
    """
    count = sum(s.advantage_count for s in summaries)
    if count == 0:
        raise ValueError("no token counts in any shard")
    mean = math.fsum(s.advantage_sum for s in summaries) / count
    square = math.fsum(s.advantage_square_sum for s in summaries) / count
    # Rounding can make the difference negative when all advantages are equal.
    return mean, math.sqrt(max(square - mean * mean, 0.0) + eps)

"""Margins in the reward model's loss (Llama 2, arXiv 2307.09288, equation 2).

A completion gets a level, and the margin of a pair is the difference of its levels, within 0 .. 1.
The paper's margins are 1 (significantly better), 2/3, 1/3 and 0 (negligibly better or unsure), its
table 27. A distance of 1, 2, and 3 or more between ratings from 1 to 7 gives just these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from orchestrator.config.training import Margin
from workers.errors import DataError
from workers.records.arrays import FloatArray, IntArray
from workers.records.training import Ranking

_STEPS = 3  # of ratings, from which on a completion is significantly better


def with_margins(rankings: Sequence[Ranking], margin: Margin) -> list[Ranking]:
    """The rankings with the levels of their completions; unchanged without a margin.

    Raises:
        DataError: the margin comes from ratings, and a ranking has none; or labels are soft.
    """
    if margin is Margin.none:
        return list(rankings)
    if any(each.probabilities is not None for each in rankings):
        raise DataError(
            "the labels are probabilities of pairs, whose loss has no margin",
            where="reward_model.margin",
            fix="set it to none, or label.labels to hard",
        )
    if margin is Margin.ranks:
        return [replace(each, levels=rank_levels(each.ranks)) for each in rankings]
    unrated = [each for each in rankings if each.likert is None]
    if unrated:
        sources = ", ".join(sorted({each.source for each in unrated} - {""})) or "the rankings"
        raise DataError(
            f"{len(unrated):,} of {len(rankings):,} rankings have no column likert, which the "
            f"margin is computed from: {sources}",
            where="reward_model.margin",
            fix="set it to ranks or none, or rate every completion from 1 to 7",
        )
    return [replace(each, levels=likert_levels(each.likert)) for each in rankings]


def rank_levels(ranks: IntArray) -> FloatArray:
    """(K,) levels whose differences are distances of ranks, divided by K - 1.

    Only the order of ranks counts: gaps do not widen a distance. The best and the worst of K
    completions without a tie are 1 apart, and so are the two of a pair.

    Args:
        ranks: (K,) 1 = best, equal = tie.
    """
    _, places = np.unique(ranks, return_inverse=True)
    return _single(-places / max(len(ranks) - 1, 1))


def likert_levels(likert: IntArray | None) -> FloatArray:
    """(K,) levels whose differences are thirds of the distances of ratings.

    Args:
        likert: (K,) ratings from 1 to 7, 7 = best.
    """
    assert likert is not None, "checked by the caller"
    return _single(likert / _STEPS)


def _single(levels: npt.NDArray[np.float64]) -> FloatArray:
    return levels.astype(np.float32)

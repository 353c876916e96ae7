"""Mixtures: several data sets as one endless stream, as a function of an integer cursor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workers.errors import ConfigError
from workers.records.arrays import IntArray

BLOCK = 1000  # positions; within each block every set has exactly its quota


def quotas(weights: Sequence[float], block: int = BLOCK) -> IntArray:
    """Positions of each set in a block, by the largest-remainder method.

    Args:
        weights: One positive weight per set; only their ratios matter.
        block: Positions to distribute.

    Returns:
        (sets,) whole numbers that add up to `block`, each within one of its exact share; between
        equal remainders the earlier set has priority.

    Raises:
        ConfigError: A weight is not positive, or so small that its set would never be read.
    """
    for weight in weights:
        if not 0.0 < weight < float("inf"):
            raise ConfigError(
                f"weight {weight:g} of a data set must be positive and finite",
                where="data.sets",
                fix="set data.sets.NAME.weight above 0, or leave the set out",
            )
    shares = np.asarray(weights, np.float64) * (block / sum(weights))
    # a share that is a whole number up to rounding errors counts as whole
    whole = np.floor(shares + 1e-9).astype(np.int64)
    order = np.argsort(-(shares - whole).round(9), kind="stable")
    whole[order[: block - int(whole.sum())]] += 1
    if not whole.all():
        raise ConfigError(
            f"weight {weights[int(np.argmin(whole))]:g} is too small for these others: its set "
            f"would have no row in {block}",
            where="data.sets",
            fix=f"raise it above a {block}th of their sum, or leave the set out",
        )
    return whole


class Mixture:
    """Maps position p of the stream to a set and a position in the stream of that set.

    Positions are cut into blocks of `BLOCK`. In each block every set has its quota, in an order
    that is a permutation f(seed, block); so proportions are exact after every block, and the
    cursor is the whole state.
    """

    def __init__(self, weights: Sequence[float], seed: tuple[int, ...]) -> None:
        self.quotas = quotas(weights)
        self.seed = seed
        self._cached: tuple[int, IntArray, IntArray] = (-1, self.quotas, self.quotas)

    def take(self, start: int, count: int) -> tuple[IntArray, IntArray]:
        """Sets and positions within them at [start, start + count), both (count,)."""
        sets, places = np.empty(count, np.int64), np.empty(count, np.int64)
        at = 0
        while at < count:
            block, offset = divmod(start + at, BLOCK)
            size = min(BLOCK - offset, count - at)
            labels, within = self._order(block)
            chosen = labels[offset : offset + size]
            sets[at : at + size] = chosen
            places[at : at + size] = block * self.quotas[chosen] + within[offset : offset + size]
            at += size
        return sets, places

    def _order(self, block: int) -> tuple[IntArray, IntArray]:
        """Set of each position of a block, and how often the set occurred earlier in the block."""
        if self._cached[0] != block:
            rng = np.random.Generator(np.random.PCG64([*self.seed, block]))
            labels = rng.permutation(np.repeat(np.arange(len(self.quotas)), self.quotas))
            within = np.empty(BLOCK, np.int64)
            for each, quota in enumerate(self.quotas):
                within[labels == each] = np.arange(quota)
            self._cached = (block, labels, within)
        return self._cached[1], self._cached[2]


def interleave(sizes: Sequence[int], weights: Sequence[float]) -> tuple[IntArray, IntArray]:
    """Every row of several finite sets once, spread by weight until a set is used up.

    Row k of a set of weight w has time (k + 1/2) / w, and rows are sorted by time; at equal times
    the earlier set comes first. A single set keeps its order.

    Returns:
        Sets and row numbers within them, both (sum of sizes,).
    """
    sets = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.concatenate([*(np.arange(size) for size in sizes), np.zeros(0, np.int64)])
    times = (rows + 0.5) / np.asarray(weights, np.float64)[sets]
    order = np.argsort(times, kind="stable")
    return sets[order], rows[order]

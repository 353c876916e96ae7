"""Samplers: the order in which rows are read, as a function of an integer cursor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from workers.data.tables.mixture import Mixture
from workers.records.arrays import IntArray


class Stream(Protocol):
    """An endless stream of row numbers; the cursor is its whole state."""

    def take(self, start: int, count: int) -> IntArray:
        """Rows at positions [start, start + count)."""
        ...


class PermutationSampler:
    """Endless epochs, each a permutation of all n rows.

    Position p is in epoch p // n, whose order depends on (seed, epoch) alone, so the cursor is
    the whole state and reading can resume anywhere.
    """

    def __init__(self, n: int, seed: tuple[int, ...]) -> None:
        assert n > 0, "a sampler needs rows"
        self.n = n
        self.seed = seed
        self._cached: tuple[int, IntArray] = (-1, np.zeros(0, np.int64))

    def take(self, start: int, count: int) -> IntArray:
        """Rows at positions [start, start + count)."""
        positions = np.arange(start, start + count, dtype=np.int64)
        epochs, places = np.divmod(positions, self.n)
        parts = [self._order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate([*parts, np.zeros(0, np.int64)])

    def _order(self, epoch: int) -> IntArray:
        if self._cached[0] != epoch:
            rng = np.random.Generator(np.random.PCG64([*self.seed, epoch]))
            self._cached = (epoch, rng.permutation(self.n))
        return self._cached[1]


class MixedSampler:
    """Several sets in fixed proportions, each with a new permutation in each of its epochs.

    Args:
        rows: Row numbers of each set; none may be empty.
        weights: One per set.
        seeds: One per set, so that the order within a set does not depend on the other sets.
        seed: Seed of the mixture.
    """

    def __init__(
        self,
        rows: Sequence[IntArray],
        weights: Sequence[float],
        seeds: Sequence[tuple[int, ...]],
        seed: tuple[int, ...],
    ) -> None:
        self._rows = rows
        self._mixture = Mixture(weights, seed)
        self._samplers = [PermutationSampler(len(r), s) for r, s in zip(rows, seeds, strict=True)]

    def take(self, start: int, count: int) -> IntArray:
        """Rows at positions [start, start + count)."""
        sets, places = self._mixture.take(start, count)
        taken = np.empty(count, np.int64)
        for each in np.unique(sets):
            of_set = sets == each
            own = places[of_set]  # consecutive: the stream visits a set's positions in order
            chosen = self._samplers[each].take(int(own[0]), len(own))
            taken[of_set] = self._rows[each][chosen]
        return taken


class LengthGroupedSampler:
    """The rows of another stream, reordered so that each batch holds rows of similar length.

    The stream is cut into windows of `window` batches. If it has epochs, it is also cut at their
    ends, so every row still occurs exactly once per epoch. The rows of a window are sorted by
    length, cut into batches, and the batches are shuffled. Batches start at multiples of their
    size; a batch that spans the end of an epoch consists of two groups.

    Args:
        stream: The stream to reorder.
        lengths: Tokens of every row, by row number.
        batch: Rows that are read together.
        window: Batches sorted together: a larger window groups better and shuffles less.
        epoch: Positions per epoch of the stream; 0 = it has none (a mixture).
        seed: Seed of the shuffled batches.
    """

    def __init__(
        self,
        stream: Stream,
        lengths: IntArray,
        *,
        batch: int,
        window: int,
        epoch: int,
        seed: tuple[int, ...],
    ) -> None:
        self._stream = stream
        self._lengths = lengths
        self._batch = batch
        self._size = batch * window
        self._epoch = epoch
        self._seed = seed
        self._cached: tuple[int, IntArray] = (-1, np.zeros(0, np.int64))

    def take(self, start: int, count: int) -> IntArray:
        """Rows at positions [start, start + count)."""
        parts: list[IntArray] = [np.zeros(0, np.int64)]
        at, end = start, start + count
        while at < end:
            first, last = self._bounds(at)
            parts.append(self._window(first, last)[at - first : end - first])
            at = last
        return np.concatenate(parts)

    def _bounds(self, position: int) -> tuple[int, int]:
        first = position // self._size * self._size
        last = first + self._size
        if self._epoch:
            begin = position // self._epoch * self._epoch
            first, last = max(first, begin), min(last, begin + self._epoch)
        return first, last

    def _window(self, first: int, last: int) -> IntArray:
        if self._cached[0] == first:
            return self._cached[1]
        rows = self._stream.take(first, last - first)
        rows = rows[np.argsort(self._lengths[rows], kind="stable")]
        cuts = np.arange(first // self._batch + 1, -(-last // self._batch)) * self._batch - first
        slots = np.split(np.arange(len(rows)), cuts)  # positions of each batch in the window
        rng = np.random.Generator(np.random.PCG64([*self._seed, first]))
        order = np.concatenate([slots[i] for i in rng.permutation(len(slots))])
        grouped = np.empty_like(rows)
        grouped[order] = rows
        self._cached = (first, grouped)
        return grouped

"""The order in which a finite data set is read, as a function of an integer cursor."""

from __future__ import annotations

import numpy as np

from workers.messages import IntArray


class PermutationSampler:
    """An endless stream of row numbers: epoch after epoch, each a permutation of all n rows.

    Position p lies in epoch p // n, whose order depends on (seed, epoch) alone, so the cursor is
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

"""Array types of the records: numpy only, no engine imports.

Axis letters: B sequences, T response tokens, S prompt + response tokens. Rows of unequal length are
stored end to end (`Ragged`), so records contain no padding, and Ray shares each array between the
processes of one node without a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of unequal length stored end to end: row i is `values[offsets[i]:offsets[i + 1]]`."""

    values: npt.NDArray[np.generic]
    offsets: IntArray

    @classmethod
    def from_rows(
        cls, rows: Sequence[Sequence[object] | npt.NDArray[np.generic]], dtype: npt.DTypeLike
    ) -> Self:
        """Pack rows; an empty list gives zero rows."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(r) for r in rows], out=offsets[1:])
        values = np.empty(int(offsets[-1]), dtype=dtype)
        for i, row in enumerate(rows):
            values[offsets[i] : offsets[i + 1]] = row
        return cls(values, offsets)

    @classmethod
    def concat(cls, parts: Sequence[Ragged]) -> Self:
        """Stack the rows of several records in order."""
        lengths = np.concatenate([p.lengths for p in parts]) if parts else np.zeros(0, np.int64)
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(np.concatenate([p.values for p in parts]), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """(B,) number of values in each row."""
        return np.diff(self.offsets)

    def row(self, i: int) -> npt.NDArray[np.generic]:
        """Row i as a view."""
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def rows(self) -> Iterable[npt.NDArray[np.generic]]:
        """Every row as a view, in order."""
        return (self.row(i) for i in range(len(self)))

    def select(self, rows: IntArray | Sequence[int]) -> Ragged:
        """The chosen rows, in the chosen order, as a copy."""
        return Ragged.from_rows([self.row(int(i)) for i in rows], self.values.dtype)

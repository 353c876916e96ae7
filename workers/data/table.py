"""Rows of one file, split and read by cursor."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from workers.data.sampler import PermutationSampler
from workers.data.splits import split_rows
from workers.errors import EmptyDatasetError
from workers.messages import IntArray

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Table(Generic[Row]):
    """Usable rows of one data set, with the numbers of its training and held-out rows."""

    name: str  # configuration key, for messages
    rows: Sequence[Row]
    train: IntArray
    heldout: IntArray

    @classmethod
    def split(
        cls, name: str, rows: Sequence[Row], keys: Sequence[str], held: Collection[str] = ()
    ) -> Table[Row]:
        """Hold out the last tenth by stable hash of the keys, and every key in `held`."""
        return cls(name, rows, *split_rows(keys, held))

    def take(self, split: str, start: int, count: int, seed: int) -> IntArray:
        """Row numbers at the cursor: endless in training, each at most once in "heldout".

        Raises:
            EmptyDatasetError: If the split holds no row.
        """
        rows = self.numbers(split)
        if split == "heldout":
            return rows[np.arange(start, start + min(count, len(rows))) % len(rows)]
        return rows[PermutationSampler(len(rows), (seed,)).take(start, count)]

    def numbers(self, split: str) -> IntArray:
        """All row numbers of a split.

        Raises:
            EmptyDatasetError: If the split holds no row.
        """
        rows = self.heldout if split == "heldout" else self.train
        if not len(rows):
            raise EmptyDatasetError(
                f"no usable row for {split!r}",
                where=f"data.files.{self.name} ({len(self.rows)} usable rows in all)",
                mend="set the file, or add rows (two different ones are the least); "
                "rows that were left out are counted by reason",
            )
        return rows

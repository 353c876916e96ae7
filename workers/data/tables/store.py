"""Rows of numbers that may outgrow memory: one flat array, in memory or memory-mapped."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable
from typing import IO

import numpy as np
import numpy.typing as npt

from workers.errors import DataError
from workers.process.disk import temporary_base
from workers.records.arrays import Ragged

SPILL_BYTES = 64 << 20  # beyond this, the values of a store go to disk


class RowStore:
    """Rows of one dtype, appended one by one or many at once, then read as `Ragged`.

    Values stay in memory up to `spill_bytes`; beyond that they go to a file in the temporary
    folder. The file has no name, so no file remains however the process ends. Its pages are in the
    page cache, which the kernel can reclaim. 8 bytes per row remain in memory.
    """

    def __init__(self, dtype: npt.DTypeLike, spill_bytes: int = SPILL_BYTES) -> None:
        self._dtype = np.dtype(dtype)
        self._spill_bytes = spill_bytes
        self._offsets = array("q", [0])
        self._parts: list[npt.NDArray[np.generic]] = []
        self._held = 0  # bytes in `_parts`
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def append(self, row: Iterable[int] | npt.NDArray[np.generic]) -> None:
        """Add one row."""
        values = np.asarray(row, self._dtype)
        self._offsets.append(self._offsets[-1] + len(values))
        self._keep(values)

    def extend(self, rows: Ragged) -> None:
        """Add many rows."""
        ends = rows.offsets[1:] + (self._offsets[-1] - int(rows.offsets[0]))
        self._offsets.frombytes(np.ascontiguousarray(ends, np.int64).tobytes())
        used = rows.values[rows.offsets[0] : rows.offsets[-1]]
        self._keep(np.asarray(used, self._dtype))

    def finish(self) -> Ragged:
        """All rows, in order; the store must not grow afterwards.

        Raises:
            DataError: The temporary folder is full.
        """
        offsets = np.frombuffer(self._offsets, np.int64)
        if self._file is None:
            values = np.concatenate([*self._parts, np.zeros(0, self._dtype)])
        else:
            self._flush(self._file)
            # a plain array over the map, so that slices are pickled as arrays, not as memmaps
            values = np.asarray(np.memmap(self._file, self._dtype, "r", shape=(int(offsets[-1]),)))
            self._file.close()
        self._parts = []
        return Ragged(values, offsets)

    def _keep(self, values: npt.NDArray[np.generic]) -> None:
        self._parts.append(values)
        self._held += values.nbytes
        if self._held > self._spill_bytes:
            if self._file is None:
                temporary_base()
                self._file = tempfile.TemporaryFile(prefix="rehearsal-")  # noqa: SIM115
            self._flush(self._file)

    def _flush(self, file: IO[bytes]) -> None:
        try:
            for part in self._parts:
                file.write(np.ascontiguousarray(part).data)
            file.flush()
        except OSError as error:
            raise DataError(
                f"cannot write tokenised rows: {error.strerror}",
                where=tempfile.gettempdir(),
                fix="free space there, or set TMPDIR to a folder that has some",
            ) from error
        self._parts, self._held = [], 0

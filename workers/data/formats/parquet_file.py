"""Read Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from workers.data.formats.kinds import Format
from workers.data.formats.line import Line
from workers.data.formats.lines import MAX_LINE_BYTES, Meter, open_bytes, too_long
from workers.errors import DataError, DataLineError, RehearsalError
from workers.process.caught_errors import Caught

if TYPE_CHECKING:  # imported where it is used: only Parquet needs it
    from pyarrow import RecordBatch

_BATCH_ROWS = 256  # in memory at a time
_FIX = "correct or delete this row"


def scan_parquet(path: str, meter: Meter | None = None) -> Iterator[Line | DataLineError]:
    """Yield the rows, batch by batch.

    Raises:
        DataError: If the file cannot be opened, or is not readable Parquet.
    """
    number = 0
    with open_bytes(path) as (_, raw):
        batches = _batches(raw, path, meter)
        while True:
            with _refusals(f"{path} after row {number}"):
                batch = next(batches, None)
            if batch is None:
                return
            large = batch.nbytes > MAX_LINE_BYTES
            for i in range(batch.num_rows):
                number += 1
                where = f"{path} row {number}"
                if large and batch.slice(i, 1).nbytes > MAX_LINE_BYTES:
                    yield too_long(where)
                else:
                    yield _parquet_row(batch, i, where)
            if meter is not None:
                meter.done = number


def _batches(raw: BinaryIO, path: str, meter: Meter | None) -> Iterator[RecordBatch]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(raw) as file:
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise DataError(
                f"two columns of one name: {', '.join(names)!r}",
                where=path,
                fix="give each column a different name",
            )
        if meter is not None:
            meter.total, meter.unit = file.metadata.num_rows, "rows"
        yield from file.iter_batches(batch_size=_BATCH_ROWS)


@contextmanager
def _refusals(where: str) -> Iterator[None]:
    """Turn what Arrow raises on a file that it cannot read into a `DataError`."""
    caught = Caught(Exception)  # damaged bytes can cause any error in Arrow
    with caught:
        yield
    if isinstance(caught.error, RehearsalError):
        raise caught.error
    if caught.error is not None:
        raise DataError(
            f"not a readable Parquet file: {caught.error}",
            where=where,
            fix="fetch or write the file again",
        ) from caught.error


def _parquet_row(batch: RecordBatch, i: int, where: str) -> Line | DataLineError:
    import pyarrow as pa

    fields: dict[str, object] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            fields[name] = column[i].as_py()
        except UnicodeDecodeError:
            return DataLineError(f'"{name}" holds invalid UTF-8', where=where, fix=_FIX)
        except (pa.ArrowException, OverflowError, ValueError, LookupError, TypeError) as error:
            # such as an invalid time or time zone
            what = f'"{name}" of type {column.type} cannot be read: {error}'
            return DataLineError(what, where=where, fix=_FIX)
    return Line(fields, where)


FORMAT = Format(scan_parquet, suffixes=(".parquet", ".pq"), family="Parquet", magic=b"PAR1")

"""Read tables: CSV, TSV and Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from workers.data.formats.jsonl import Line
from workers.data.formats.lines import (
    MAX_LINE_BYTES,
    Meter,
    bounded_lines,
    holds_nul,
    open_bytes,
    too_long,
)
from workers.errors import DataError, DataLineError, RehearsalError
from workers.process.caught_errors import Caught

if TYPE_CHECKING:  # imported where it is used: only Parquet needs it
    from pyarrow import RecordBatch

_BATCH_ROWS = 256  # Parquet rows in memory at a time
_ROW_LINES = 1000  # most physical lines of a CSV row; more are due to a stray quotation mark
_FIX = "correct or delete this row"


def scan_csv(
    path: str, meter: Meter | None = None, delimiter: str = ","
) -> Iterator[Line | DataLineError]:
    """Yield the rows under a header line; every value is text, and an empty cell is null.

    Raises:
        DataError: If the file cannot be opened, its compression is broken, the header line is not a
            list of distinct names, or a quotation mark is misplaced: the boundaries of all later
            rows are then uncertain.
    """
    source = _CsvLines(path, meter)
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        begin = source.number
        where = f"{path}:{begin + 1}"
        row: Line | DataLineError | None = None
        try:
            cells = next(reader)
        except StopIteration:
            yield from source.errors
            return
        except csv.Error as error:
            raise _amiss(str(error), where) from error
        else:
            if source.number - begin > _ROW_LINES:
                raise _amiss(f"a row of more than {_ROW_LINES:,} lines", where)
            if header is None and cells:
                header = _header(cells, path)
            elif header is not None and cells:
                row = _csv_row(header, cells, where)
        yield from source.errors
        source.errors.clear()
        if row is not None:
            yield row


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
                fix="give each column a name of its own",
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


class _CsvLines:
    """Decoded lines for the CSV reader; lines that it cannot read are collected as errors."""

    def __init__(self, path: str, meter: Meter | None) -> None:
        self.number = 0  # of the line returned last
        self.errors: list[DataLineError] = []
        self._path = path
        self._lines = bounded_lines(path, meter)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        for number, raw in self._lines:
            self.number = number
            if not isinstance(raw, DataLineError):
                # bad bytes become lone surrogates, so that the error can name their cell
                text = raw.decode("utf-8", errors="surrogateescape")
                if "\0" in text:
                    self.errors.append(holds_nul(f"{self._path}:{number}"))
                    continue
                return text.removeprefix("\ufeff") if number == 1 else text
            self.errors.append(raw)
        raise StopIteration


def _amiss(what: str, where: str) -> DataError:
    return DataError(
        f"not valid CSV: {what}",
        where=where,
        fix='correct the quotation marks: a cell is quoted whole or not at all, and "" stands '
        "for one within",
    )


def _header(cells: list[str], path: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if any("\udc80" <= c <= "\udcff" for name in names for c in name):
        raise DataError(
            "the header line holds invalid UTF-8", where=f"{path}:1", fix="save the file as UTF-8"
        )
    if "" in names or len(set(names)) < len(names):
        raise DataError(
            f"the header line must hold distinct names, not {', '.join(names)!r}",
            where=f"{path}:1",
            fix="name each column once in the first line",
        )
    return names


def _csv_row(header: list[str], cells: list[str], where: str) -> Line | DataLineError:
    if len(cells) != len(header):
        what = f"{len(cells)} cells for {len(header)} columns"
        return DataLineError(what, where=where, fix=_FIX)
    fields: dict[str, object] = {}
    for name, cell in zip(header, cells, strict=True):
        if not cell.isascii() and any("\udc80" <= c <= "\udcff" for c in cell):
            return DataLineError(f'"{name}" holds invalid UTF-8', where=where, fix=_FIX)
        fields[name] = cell or None
    return Line(fields, where, typed=False)


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

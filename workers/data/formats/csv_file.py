"""Read CSV and TSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from workers.data.formats.kinds import Format, suffix_of
from workers.data.formats.line import Line
from workers.data.formats.lines import MAX_LINE_BYTES, Meter, bounded_lines, holds_nul
from workers.errors import DataError, DataLineError

_ROW_LINES = 1000  # most physical lines of a CSV row; more are due to a stray quotation mark
_FIX = "correct or delete this row"


def scan_csv(path: str, meter: Meter | None = None) -> Iterator[Line | DataLineError]:
    """Yield the rows under a header line; every value is text, and an empty cell is null.

    Cells are separated by tabs in a file named .tsv or .tsv.gz, else by commas.

    Raises:
        DataError: If the file cannot be opened, its compression is broken, the header line is not a
            list of distinct names, or a quotation mark is misplaced: the boundaries of all later
            rows are then uncertain.
    """
    source = _CsvLines(path, meter)
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(source, delimiter="\t" if suffix_of(path) == ".tsv" else ",", strict=True)
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
        fix='correct the quotation marks: a cell is quoted whole or not at all, and "" is '
        "one quotation mark in it",
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


FORMAT = Format(scan_csv, suffixes=(".csv", ".tsv"), family="CSV")

"""Read lines of plain or gzipped files, with a limit on the length of a line."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from workers.errors import DataError, DataLineError
from workers.process.regular_files import open_regular

MAX_LINE_BYTES = 8 * 2**20  # a longer line is refused without being read into memory
_LONGEST_LINE_BYTES = 2**28  # reading stops at a longer line
_GZIP = b"\x1f\x8b"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_METER_LINES = 256  # lines between two updates of the progress


@dataclass(slots=True)
class Meter:
    """Progress of reading, for a progress bar; in bytes on disk, or in rows."""

    total: int = 0  # 0 = unknown
    done: int = 0
    unit: str = "B"


@contextmanager
def open_bytes(path: str, meter: Meter | None = None) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a file and, where its content is gzip, decompress it.

    Yields:
        The stream to read, and the underlying file on disk, whose position gives the progress.

    Raises:
        DataError: If the file cannot be opened or read, or its compression is broken.
    """
    try:
        raw = open_regular(path)
    except OSError as error:
        raise DataError(
            f"cannot open the data file: {error.strerror}",
            where=path,
            fix="take the space from the beginning or end of the path"
            if path != path.strip()
            else "correct the path of the data set; rows are read more than once, so they must be "
            "in a file",
        ) from error
    with raw:
        try:
            if meter is not None:
                meter.total = os.fstat(raw.fileno()).st_size
            begins = raw.peek(2)[:2]
            if begins in _UTF_16:
                raise DataError(
                    "the file is UTF-16, not UTF-8",
                    where=path,
                    fix="save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW",
                )
            if begins == _GZIP:
                # the buffer finds line ends in C; GzipFile alone would be slow per line
                yield io.BufferedReader(gzip.GzipFile(fileobj=raw), 2**20), raw  # pyright: ignore[reportArgumentType]
            else:
                yield raw, raw
        except EOFError as error:
            raise _broken("the gzip file is truncated", path) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise _broken(f"the gzip file is broken: {error}", path) from error
        except OSError as error:
            raise _broken(f"cannot read the data file: {error}", path) from error


def bounded_lines(
    path: str, meter: Meter | None = None, limit: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, bytes | DataLineError]]:
    """Yield each line with its number from 1; a line over `limit` bytes is yielded as an error.

    Raises:
        DataError: As `open_bytes`.
    """
    with open_bytes(path, meter) as (stream, raw):
        number = blank = 0
        while line := stream.readline(limit + 1):
            number += 1
            if meter is not None and number % _METER_LINES == 0:
                meter.done = raw.tell()
            blank = blank + len(line) if line.isspace() else 0
            if blank > MAX_LINE_BYTES:
                raise only_space(f"{path}:{number}")
            if len(line) <= limit or line.endswith(b"\n"):
                yield number, line
                continue
            _skip_line(stream, f"{path}:{number}", limit)
            yield number, too_long(f"{path}:{number}", limit)
    if meter is not None:
        meter.done = meter.total


def _skip_line(stream: BinaryIO, where: str, limit: int) -> None:
    for _ in range(_LONGEST_LINE_BYTES // limit + 1):
        rest = stream.readline(limit)
        if not rest or rest.endswith(b"\n"):
            return
    raise DataError(
        f"a line of over {_LONGEST_LINE_BYTES / 2**20:g} MiB",
        where=where,
        fix="fetch or write the file again; this is no file of rows",
    )


def only_space(where: str) -> DataError:
    """The error for a file with too much white space in one place."""
    return DataError(
        f"over {MAX_LINE_BYTES / 2**20:g} MiB of white space in a row",
        where=where,
        fix="delete the blank lines; a damaged or unfinished file often holds them",
    )


def too_long(where: str, limit: int = MAX_LINE_BYTES) -> DataLineError:
    """The error for a row that is too long to be read."""
    return DataLineError(
        f"longer than {limit / 2**20:g} MiB",
        where=where,
        fix="break the line up, or delete it; a damaged file often lost its line ends",
    )


def holds_nul(where: str) -> DataLineError:
    """The error for a line that holds a NUL character, and so is not text."""
    return DataLineError(
        "holds a NUL character, which text does not",
        where=where,
        fix="save the file as UTF-8 (UTF-16 looks like this), or delete the line",
    )


def _broken(what: str, path: str) -> DataError:
    return DataError(what, where=path, fix="fetch or write the file again")

"""What a file format is, and the formats that there are: one module `NAME_file.py` each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workers.data.formats.line import Line
from workers.data.formats.lines import Meter
from workers.errors import DataLineError
from workers.extensions.kinds import Kind

Row = Line | DataLineError
Scan = Callable[[str, Meter | None], Iterator[Row]]


@dataclass(frozen=True, slots=True)
class Format:
    """How files of one format are recognised and read."""

    scan: Scan
    """Yields the rows of a file in order, a bad one as its error; reports progress to the meter."""
    suffixes: tuple[str, ...] = ()
    """Endings of file names that are always of this format, in lower case, such as ".csv"."""
    family: str = ""
    """Files of one family may form a data set together; "" = a folder's files never do."""
    magic: bytes = b""
    """First bytes of every file of this format; b"" = they do not tell."""

    def __post_init__(self) -> None:
        """Raises TypeError where `scan` is no function, at the user's line."""
        if not callable(self.scan):
            raise TypeError(f"scan is {self.scan!r}: it must be a function")


SPECIAL = ("auto", "datasets")  # no format of a file: decide by name and content; a folder or an id
FORMATS = Kind("data format", Format, "workers.data.formats", "FORMAT", "_file", SPECIAL)


def suffix_of(path: str) -> str:
    """The ending of a file's name in lower case, without ".gz"."""
    return Path(path.lower().removesuffix(".gz")).suffix


def format_by_suffix(path: str) -> str:
    """The format by the suffix of a file; "" if the suffix does not decide, as for ".json"."""
    return _by_suffix().get(suffix_of(path), "")


def family_by_suffix(path: str) -> str:
    """JSON, Parquet, CSV or text; "" for a file that is not a data file."""
    name = "json" if suffix_of(path) == ".json" else format_by_suffix(path)
    return ours(name).family if name else ""


def ours(name: str) -> Format:
    """A format of this project."""
    return FORMATS.find(name, "format")


@functools.cache
def _by_suffix() -> dict[str, str]:
    return {suffix: name for name in FORMATS.names() for suffix in ours(name).suffixes}

"""Rows of a data set in any usual format."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from workers.data.formats import hub
from workers.data.formats.folders import split_files
from workers.data.formats.json_file import is_turn, scan_json
from workers.data.formats.jsonl import Line, scan_jsonl
from workers.data.formats.lines import Meter, open_bytes
from workers.data.formats.names import FORMATS, format_by_suffix
from workers.data.formats.plain_text import scan_text
from workers.data.formats.tables import scan_csv, scan_parquet
from workers.errors import ConfigError, DataError, DataLineError, EmptyDatasetError

Row = Line | DataLineError
_Scan = Callable[[str, Meter | None], Iterator[Row]]

_SCANS: dict[str, _Scan] = {
    "jsonl": scan_jsonl,
    "json": scan_json,
    "parquet": scan_parquet,
    "csv": scan_csv,
    "tsv": partial(scan_csv, delimiter="\t"),
    "text": scan_text,
}
# OWNER/NAME, or the NAME alone of a data set that the hub's own staff keeps
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PARQUET = b"PAR1"


def read_rows(
    path: str,
    *,
    format: str = "auto",  # noqa: A002
    split: str = "train",
    subset: str = "",
) -> Iterator[Line]:
    """Yield rows in order, a few at a time in memory; `where` names the file and line or row.

    Args:
        path: A file (JSONL, JSON, Parquet, CSV, TSV, plain text; all but Parquet also gzipped), a
            folder of such files, a folder that `save_to_disk` of the `datasets` library wrote, or
            the id of a data set on the Hugging Face hub.
        format: One of `FORMATS`; "auto" goes by the suffix, and where that says nothing by the
            content. "datasets" takes `path` for a folder or an id.
        split: Of a folder or data set with several splits, which one.
        subset: Of a folder or data set with several configurations, which one.

    Raises:
        ConfigError: If there is no such format.
        DataError: If the source cannot be opened, is of no known format or is damaged.
        DataLineError: On the first line or row that does not parse.
        EmptyDatasetError: If there is no row at all.
    """
    for row in scan_rows(path, format=format, split=split, subset=subset):
        if isinstance(row, DataLineError):
            raise row
        yield row


def scan_rows(
    path: str,
    *,
    format: str = "auto",  # noqa: A002
    split: str = "train",
    subset: str = "",
    meter: Meter | None = None,
) -> Iterator[Row]:
    """As `read_rows`, with the error of a bad line in its place and unraised."""
    if format not in FORMATS:
        raise ConfigError(
            f"no data format {format!r}", where="format", fix=f"one of: {', '.join(FORMATS)}"
        )
    rows = _scan(path, format, split, subset, meter)
    first = next(rows, None)
    if first is None:
        raise EmptyDatasetError(
            "the data set holds no row", where=path, fix="add rows, or leave the data set out"
        )
    yield first
    yield from rows


def _scan(path: str, declared: str, split: str, subset: str, meter: Meter | None) -> Iterator[Row]:
    _check_name(path)
    place = Path(path)
    if declared not in ("auto", "datasets"):
        tabs = declared == "csv" and format_by_suffix(path) == "tsv"
        return _SCANS["tsv" if tabs else declared](path, meter)
    if place.is_dir():
        if hub.is_saved(place):
            return hub.scan_saved(path, split, meter)
        return _scan_files(split_files(path, split, subset), meter)
    if not place.exists() and (declared == "datasets" or _may_be_hub_id(path)):
        return hub.scan_hub(path, split, subset, meter)
    return _SCANS[format_by_suffix(path) or _by_content(path)](path, meter)


def _check_name(path: str) -> None:
    """Refuse a path that no system call would take, or that may not even be looked at."""
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return  # told in the words of the format, or the id of a data set
    except (OSError, ValueError) as error:  # too long, forbidden, a NUL character
        raise DataError(
            f"cannot open the data file: {getattr(error, 'strerror', None) or error}",
            where=repr(path),
            fix="correct the path",
        ) from error


def _scan_files(files: list[str], meter: Meter | None) -> Iterator[Row]:
    for file in files:
        yield from _SCANS[format_by_suffix(file) or _by_content(file)](file, meter)


def _may_be_hub_id(path: str) -> bool:
    return (
        _HUB_ID.fullmatch(path) is not None and not format_by_suffix(path) and ".json" not in path
    )


def _by_content(path: str) -> str:
    """The format that the first bytes tell; ".json" says too little, as it is used for JSONL."""
    with open_bytes(path) as (stream, _):
        start = stream.read(4096).removeprefix(b"\xef\xbb\xbf")
    if start.startswith(_PARQUET):
        return "parquet"
    text = start.lstrip()
    if text.startswith(b"["):
        return "json"
    if text.startswith(b"{"):
        return "jsonl" if _has_row_a_line(path) else "json"
    if not text and ".json" in path:
        return "jsonl"
    raise DataError(
        "the format of the data file is not known by its name, nor by its content",
        where=path,
        fix=f"declare it by data.format, one of: {', '.join(FORMATS[1:])}",
    )


def _has_row_a_line(path: str) -> bool:
    """Whether the first line is a whole object and either not alone or no holder of a list."""
    found: list[Row] = []
    for row in scan_jsonl(path):
        found.append(row)
        if len(found) == 2:
            break
    first = found[0]
    if isinstance(first, DataLineError):
        return False
    lists = [value for value in first.fields.values() if isinstance(value, list)]
    # the list of a dialogue holds turns: such an object is a row itself
    holds_rows = (
        len(lists) == 1
        and isinstance(next(iter(lists[0]), None), dict)
        and not is_turn(lists[0][0])
    )
    return len(found) == 2 or not holds_rows

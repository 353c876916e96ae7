"""Read the rows of a data set in any supported format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from workers.data.formats import hub
from workers.data.formats.folders import split_files
from workers.data.formats.json_file import is_turn
from workers.data.formats.jsonl_file import scan_jsonl
from workers.data.formats.kinds import FORMATS, Row, format_by_suffix, ours
from workers.data.formats.line import Line
from workers.data.formats.lines import Meter, open_bytes
from workers.errors import DataError, DataLineError, EmptyDatasetError, RehearsalError
from workers.process.caught_errors import Caught
from workers.process.user_code import describe

# OWNER/NAME, or NAME alone for data sets without an owner on the hub
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

# Public files that our experiments and pages name, and where they come from.
_GSM8K = "https://github.com/openai/grade-school-math (grade_school_math/data/{})"
_FETCHED = {
    "gsm8k_train.jsonl": _GSM8K.format("train.jsonl"),
    "gsm8k_test.jsonl": _GSM8K.format("test.jsonl"),
    "gsm8k_model_solutions_k4.jsonl": _GSM8K.format("example_model_solutions.jsonl"),
}


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
        format: A name of `FORMATS`, or `package.module:NAME` of your own; "auto" decides by the
            suffix, or else by the content. "datasets" means that `path` is a folder or an id.
        split: The split to read, if the folder or data set has several.
        subset: The configuration to read, if the folder or data set has several.

    Raises:
        ConfigError: If there is no such format.
        DataError: If the source cannot be opened, has no known format or is damaged.
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
    """As `read_rows`, but a bad line is yielded as its error instead of raised."""
    rows = _scan(path, format, split, subset, meter)
    first = next(rows, None)
    if first is None:
        raise EmptyDatasetError(
            "the data set holds no row", where=path, fix="add rows, or leave the data set out"
        )
    yield first
    yield from rows


def require_readable(path: str, *, format: str = "auto") -> None:  # noqa: A002
    """Check that a data set can be opened, without reading it or asking the hub.

    What the path of a format of your own means is known to its reader alone.

    Args:
        path: As of `read_rows`.
        format: As of `read_rows`.

    Raises:
        DataError: If there is no such file, or it cannot be opened.
    """
    _check_name(path)
    if not (Path(path).is_dir() or _is_at_hub(path, format) or ":" in format):
        with open_bytes(path):
            pass


def _scan(path: str, declared: str, split: str, subset: str, meter: Meter | None) -> Iterator[Row]:
    _check_name(path)
    place = Path(path)
    if declared not in ("auto", "datasets"):
        return _declared(declared, path, meter)
    if place.is_dir():
        if hub.is_saved(place):
            return hub.scan_saved(path, split, meter)
        return _scan_files(split_files(path, split, subset), meter)
    if _is_at_hub(path, declared):
        return hub.scan_hub(path, split, subset, meter)
    return ours(format_by_suffix(path) or _by_content(path)).scan(path, meter)


def _declared(name: str, path: str, meter: Meter | None) -> Iterator[Row]:
    """The rows of a file of a declared format; what a user's reader raises names the file."""
    found = FORMATS.find(name, f"the format of {path}", str(Path.cwd()))
    if ":" not in name:
        yield from found.scan(path, meter)
        return
    caught = Caught((Exception, SystemExit))  # user code may raise anything
    with caught:
        for row in found.scan(path, meter):
            _check_row(row)
            yield row
    if isinstance(caught.error, RehearsalError):
        raise caught.error
    if caught.error is not None:
        raise DataError(
            f"the reader {name} failed: {describe(caught.error)}",
            where=path,
            fix="correct the reader, or the file",
        ) from caught.error


def _check_row(row: object) -> None:
    if isinstance(row, DataLineError):
        return
    if not isinstance(row, Line):
        raise TypeError(f"it yields {type(row).__name__}, not Line or DataLineError")
    fields: object = row.fields
    if not (isinstance(fields, Mapping) and all(isinstance(name, str) for name in fields)):
        raise TypeError("it yields a Line whose fields are no mapping with texts as names")
    if not isinstance(row.where, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError("it yields a Line whose `where` is no text")


def _check_name(path: str) -> None:
    """Refuse a path that is invalid or not accessible."""
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        if source := _FETCHED.get(Path(path).name):
            raise DataError(
                "no such file",
                where=path,
                fix=f"fetch it from {source} into this folder, or name another file",
            ) from error
        return  # reported by the reader of the format, or it is the id of a data set
    except (OSError, ValueError) as error:  # too long, forbidden, a NUL character
        raise DataError(
            f"cannot open the data file: {getattr(error, 'strerror', None) or error}",
            where=repr(path),
            fix="correct the path",
        ) from error


def _scan_files(files: list[str], meter: Meter | None) -> Iterator[Row]:
    for file in files:
        yield from ours(format_by_suffix(file) or _by_content(file)).scan(file, meter)


def _is_at_hub(path: str, declared: str) -> bool:
    """Whether a path is the id of a data set on the hub: no file is called so, nor declared."""
    if Path(path).exists() or declared not in ("auto", "datasets"):
        return False
    return declared == "datasets" or _may_be_hub_id(path)


def _may_be_hub_id(path: str) -> bool:
    return (
        _HUB_ID.fullmatch(path) is not None and not format_by_suffix(path) and ".json" not in path
    )


def _by_content(path: str) -> str:
    """The format by the first bytes; needed for ".json", which is also used for JSONL."""
    with open_bytes(path) as (stream, _):
        start = stream.read(4096).removeprefix(b"\xef\xbb\xbf")
    for name in FORMATS.names():
        if (magic := ours(name).magic) and start.startswith(magic):
            return name
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
        fix=f"declare it by data.format, one of: {', '.join((*FORMATS.names(), 'datasets'))}",
    )


def _has_row_a_line(path: str) -> bool:
    """Whether a file is JSONL: its first line is one object, and more lines follow or it is a row.

    A single object that holds one list of objects is not a row but a JSON data file.
    """
    found: list[Row] = []
    for row in scan_jsonl(path):
        found.append(row)
        if len(found) == 2:
            break
    first = found[0]
    if isinstance(first, DataLineError):
        return False
    lists = [value for value in first.fields.values() if isinstance(value, list)]
    # an object whose list holds turns is a dialogue, which is a row
    holds_rows = (
        len(lists) == 1
        and isinstance(next(iter(lists[0]), None), dict)
        and not is_turn(lists[0][0])
    )
    return len(found) == 2 or not holds_rows

"""Read JSONL files, one JSON object per line; every error names FILE:LINE."""

from __future__ import annotations

from collections.abc import Iterator

from workers.data.formats.kinds import Format
from workers.data.formats.line import Line, kind_of, parse_json
from workers.data.formats.lines import Meter, bounded_lines
from workers.errors import DataLineError

_FIX = "correct or delete this line"


def scan_jsonl(path: str, meter: Meter | None = None) -> Iterator[Line | DataLineError]:
    """Yield the objects of a file; blank lines are skipped.

    A line that is not UTF-8, not JSON, not an object, too long, or holds NaN or Infinity is yielded
    as its error.

    Raises:
        DataError: If the file cannot be opened, or its compression is broken.
    """
    for number, raw in bounded_lines(path, meter):
        if isinstance(raw, DataLineError):
            yield raw
        elif raw.strip():
            try:
                yield _parse(raw, f"{path}:{number}")
            except DataLineError as error:
                yield error


def _parse(raw: bytes, where: str) -> Line:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataLineError(
            f"invalid UTF-8 at byte {error.start + 1} of the line", where=where, fix=_FIX
        ) from error
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise DataLineError(
            f"a line must be a JSON object, not {kind_of(value)}", where=where, fix=_FIX
        )
    return Line(value, where)


FORMAT = Format(scan_jsonl, suffixes=(".jsonl", ".ndjson"), family="JSON")

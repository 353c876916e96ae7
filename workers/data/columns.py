"""Which columns of a data set hold what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workers.data.jsonl import Line

Columns = Mapping[str, str | Sequence[str]]


def map_columns(line: Line, columns: Columns) -> Line:
    """The line with its fields under their canonical names."""
    ...

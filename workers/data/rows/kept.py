"""Columns of a prompt's row that are kept for reward functions, verifiers and servers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from workers.data.formats.line import Line, kind_of

KEY = "data.keep_columns"


def pack_columns(row: Line, values: Mapping[str, object]) -> str:
    """The kept columns of a row as JSON.

    Args:
        row: The row, for errors.
        values: Column -> value; None where the row lacks it.

    Raises:
        DataLineError: A value is missing or null, or is not text, a number, a boolean, or a list
            or object of these.
    """
    for name, value in values.items():
        if value is None:
            row.fail(
                f'column "{name}" is missing or null (found {row.found()})',
                fix=f"correct this line, or {KEY}",
            )
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            row.fail(
                f'column "{name}" is {kind_of(value)}, or holds what JSON cannot: it must be text, '
                "a finite number, a boolean, or a list or object of these",
                fix=f"correct this line, or {KEY}",
            )
    return json.dumps(dict(values)) if values else ""


def unpack_columns(packed: str) -> dict[str, Any]:
    """The columns that `pack_columns` packed, as new objects; {} where none are kept."""
    found: dict[str, Any] = json.loads(packed) if packed else {}
    return found


def missing_of(columns: Sequence[str], packed: str) -> list[str]:
    """Those of the columns that are not kept."""
    return sorted({*columns} - unpack_columns(packed).keys())

"""Group rows of one completion each into rankings by their prompt.

Two passes: the first counts the rows of each prompt, so that the second holds rows only until the
last one of their prompt. If the rows of each prompt are adjacent, only those of one are in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from hashlib import blake2b

from workers.data.formats.line import Line
from workers.data.recognise.rankings_by_fields import NO_LABEL
from workers.data.rows.fields import ANNOTATORS, ASKING, REPLIES, first_of, user_of
from workers.data.rows.unusable import Unusable

_ORDERS = {"rank": "ranks", "score": "scores"}


def holds_one_of_many(line: Line) -> bool:
    """Whether a row holds one completion with its score or rank, which may be null."""
    return (
        any(name in line.fields or name in line.nulls for name in _ORDERS)
        and any(name in line.fields for name in REPLIES)
        and not any(name in line.fields for name in ("completions", "chosen", "rejected"))
    )


class Groups:
    """Rows of one data set, grouped by prompt and, where one is named, by annotator."""

    def __init__(self) -> None:
        self._ahead: Counter[bytes] = Counter()
        self._open: dict[bytes, list[Line]] = {}

    def note(self, line: Line) -> None:
        """Count a row of the first pass, unless it cannot be used."""
        _check(line)
        self._ahead[_key(line)] += 1

    def add(self, line: Line) -> Line | None:
        """Add a row of the second pass; returns the ranking at the last row of its prompt.

        Raises:
            DataLineError: If the row has no completion, or neither score nor rank.
            Unusable: If its only score or rank is null, or no other row has the same prompt.
        """
        _check(line)
        key = _key(line)
        self._ahead[key] -= 1
        rows = self._open.setdefault(key, [])
        rows.append(line)
        if self._ahead[key] > 0:
            return None
        del self._open[key]
        if len(rows) < 2:
            raise Unusable("the only completion of its prompt")
        return _together(rows)

    def left(self) -> bool:
        """Whether there are rows whose ranking is not complete."""
        return bool(self._open)


def _check(row: Line) -> None:
    _completion(row)
    if any(name in row.nulls for name in _ORDERS) and not first_of(row, tuple(_ORDERS)):
        raise Unusable(NO_LABEL)
    row.field(_order_of(row))


def _together(rows: list[Line]) -> Line:
    first = rows[0]
    order = _order_of(first)
    fields = {name: first.fields[name] for name in (*ASKING, *ANNOTATORS) if name in first.fields}
    users = {user_of(row) for row in rows}
    if len(users) > 1:
        first.fail(
            "the rows of one prompt name several users",
            fix="map the user who wrote the prompt (data.columns), or none",
        )
    fields["user"] = users.pop() or None
    fields["completions"] = [_completion(row) for row in rows]
    fields[_ORDERS[order]] = [row.field(order) for row in rows]
    return replace(first, fields=fields, used=set()).without_nulls()


def _completion(row: Line) -> object:
    name = first_of(row, REPLIES)
    return row.parsed(row.field(name or "completion"))


def _order_of(row: Line) -> str:
    return next((name for name in _ORDERS if name in row.fields), "score")


def _key(line: Line) -> bytes:
    named = [(name, line.fields.get(name)) for name in (*ASKING, *ANNOTATORS)]
    text = json.dumps(named, default=str, sort_keys=True)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()

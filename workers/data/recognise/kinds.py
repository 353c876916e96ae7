"""Find the kind of a data set by the fields of its first rows."""

from __future__ import annotations

from contextlib import suppress

from workers.data.formats.line import Line
from workers.data.formats.readers import Row, scan_rows
from workers.data.recognise import signs
from workers.data.recognise.columns import ColumnMap, Columns, check_columns
from workers.data.recognise.recognise import SHAPES, Kind, OnBadLine
from workers.data.recognise.shapes import ACCEPTED
from workers.data.recognise.suggestions import columns_of_reply, columns_to_set
from workers.data.rows.fields import DIALOGUES, REPLIES, REPLIES_TO, first_of
from workers.data.rows.unusable import Unusable
from workers.errors import DataLineError

_RICHEST_FIRST: tuple[Kind, ...] = ("comparisons", "demonstrations", "prompts", "pretraining")
_ROWS = 256  # rows that are checked; more while all of them are bad
_SAY_KIND = "or say what the rows are to be read as (inspect --kind)"


def kind_of_data(
    path: str,
    columns: Columns | None = None,
    on_bad_line: OnBadLine = "fail",
    *,
    format: str = "auto",  # noqa: A002
    split: str = "train",
    subset: str = "",
) -> Kind:
    """The kind of a data set: the richest kind of any of its first rows.

    With "drop", rows that cannot be read are skipped, unless they seem to be of a richer kind than
    those that can.

    Raises:
        ConfigError: If `columns` names an unknown field.
        DataError: As `read_rows`.
        DataLineError: The error of the first row that cannot be read; names its line and field.
    """
    check_columns(columns or {})
    mapping = ColumnMap(columns or {})
    rows = scan_rows(path, format=format, split=split, subset=subset)
    found: set[Kind] = set()
    refused: dict[Kind | None, DataLineError] = {}
    for number, row in enumerate(rows, 1):
        kind, error = _judge_row(row, mapping)
        if error is None:
            assert kind is not None, "a row of no kind is an error"
            found.add(kind)
        elif on_bad_line == "fail":
            raise error
        else:
            refused.setdefault(kind, error)
        if number >= _ROWS and found:
            break
    for kind in _RICHEST_FIRST:
        if kind in found:
            return kind
        if kind in refused:
            raise refused[kind]
    raise next(iter(refused.values()))


def _judge_row(row: Row, mapping: ColumnMap) -> tuple[Kind | None, DataLineError | None]:
    """The kind that a row indicates (None = unknown), and the error if it cannot be read so."""
    if isinstance(row, DataLineError):
        return None, row
    kind: Kind | None = None
    line = row
    try:
        line = mapping.map(row)
        kind = _signified(line)
        return _checked(line, kind), None
    except DataLineError as error:
        return kind or _hidden_kind(line), error


def _hidden_kind(line: Line) -> Kind | None:
    """The kind that a refused row seems to hold under unknown names; None = unknown."""
    with suppress(DataLineError):
        scored = first_of(line, REPLIES) and signs.scored_by(line)
        if scored or signs.names_a_column(line) or signs.looks_ranked(signs.flattened(line)):
            return "comparisons"
        if signs.looks_answered(line):
            return "demonstrations"
    return None


def _signified(line: Line) -> Kind:  # noqa: RET503 - `fail` does not return
    """The kind that the fields of a row indicate.

    Raises:
        DataLineError: If they indicate no kind, or one under unknown names.
    """
    names = line.fields.keys()
    if mistaken := signs.names_a_column(line):
        line.fail(
            f'"{mistaken}" names another column instead of holding a reply',
            fix=f"set columns {columns_to_set(line)}; {_SAY_KIND}",
        )
    if any(name in names for name in signs.RANKED):
        return "comparisons"
    if {"rank", "score"} & line.columns.keys() and first_of(line, REPLIES):
        return "comparisons"
    if why := signs.looks_ranked(line):
        line.fail(why, fix=f"set columns {columns_to_set(line)}; {_SAY_KIND}")
    if {"parent_id", "message_id"} <= {*names, *line.nulls}:
        line.fail(
            "a row is one message of a tree of dialogues",
            fix="write each path through the tree as one row with messages",
        )
    asks, replies = first_of(line, tuple(REPLIES_TO)), first_of(line, REPLIES)
    if first_of(line, DIALOGUES) or "instances" in names:
        return "demonstrations"
    if asks and replies:
        _check_unscored(line, asks, replies)
        return "demonstrations"
    if asks or "turns" in names or "text" in names:
        _check_all_is_read(line)
        return "prompts" if asks or "turns" in names else "pretraining"
    shapes = "; ".join(f"{kind}: {accepted}" for kind, accepted in ACCEPTED.items())
    flat = signs.flattened(line)
    columns = columns_to_set(flat) or columns_of_reply(flat)
    line.fail(
        f"a row of no known shape: found {line.found()}",
        fix=f"set columns {columns}; accepted shapes: {shapes}" if columns else shapes,
    )


def _check_all_is_read(line: Line) -> None:
    """Refuse a row with a prompt or a text that also seems to hold replies."""
    if reply := signs.looks_answered(line):
        line.fail(
            f'"{reply}" looks like a reply',
            fix=f"set columns {columns_of_reply(line)}; {_SAY_KIND}",
        )
    flat = signs.flattened(line)
    if why := signs.looks_ranked(flat):
        line.fail(why, fix=f"set columns {columns_to_set(flat)}; {_SAY_KIND}")


def _check_unscored(line: Line, asks: str, replies: str) -> None:
    if score := signs.scored_by(line):
        field = "rank" if signs.is_rank_name(score) else "score"
        line.fail(
            f'"{score}" seems to say how good "{replies}" is',
            fix=f"to rank the rows of each prompt set columns {asks}={asks} completion={replies} "
            f"{field}={score}; {_SAY_KIND}",
        )


def _checked(line: Line, kind: Kind) -> Kind:
    """The kind, after the row was read as that; a dialogue without a reply is a prompt."""
    try:
        known = {*line.fields, *line.nulls}
        if kind != "comparisons" or not {"better", "rank", "score"} & known:
            list(SHAPES[kind](line, ""))
    except Unusable as unusable:
        if kind == "demonstrations" and str(unusable) == "last turn is not the assistant's":
            return "prompts"
    return kind

"""Marks of rows and turns that are bad or must not be trained.

Marks are looked for in every column, even where `columns` maps other columns only: a row that is
marked as bad must not be trained because nobody mapped the column of the mark.
"""

from __future__ import annotations

from collections.abc import Mapping

from workers.data.formats.line import Line
from workers.data.rows.unusable import TOOL_CALLS, Unusable

MEDIA = "holds images, audio or video"
# Columns that are true for good replies; in a demonstration they must not be false.
_GOOD = ("label", "is_safe", "safe", "is_correct", "accepted", "is_accepted", "review_result")
_TRAINED = ("train", "trainable", "loss", "train_on_turn")
_MASKED = ("masked", "mask")
_GONE = ("deleted", "is_deleted", "removed", "spam", "is_spam")
_MEDIA = ("images", "image", "audio", "audios", "video", "videos")
_TOOLS = ("tools", "functions", "tool_calls", "function_call")
_FALSE = (False, 0, -1, "false", "no", "0", "-1")
_TRUE = (True, 1, "true", "yes", "1")


def check_row(row: Line, kind: str, mapped: set[str]) -> None:
    """Refuse a row whose marks say that it must not be used for a kind.

    Args:
        row: The row as it was read, with unmapped column names.
        kind: The kind that the row is read as.
        mapped: Columns to which `columns` gives another meaning; they are not marks.

    Raises:
        Unusable: If a mark says so; names the column.
    """
    marks = {
        name: row.fields[name]
        for name in row.fields.keys() & _MARKS
        if name not in mapped and row.fields[name] is not None
    }
    if not marks:
        return
    true, false = _flags(kind)
    for name in (*true, *false):
        if name in marks and flag(marks[name]) is (name in true):
            raise Unusable(f'its "{name}" is {"true" if name in true else "false"}')
    if kind != "prompts" and _is_zero(marks.get("weight")):
        raise Unusable('its "weight" is 0')
    if any(_holds(marks.get(name)) for name in _MEDIA):
        raise Unusable(MEDIA)
    if kind != "pretraining" and any(_lists(marks.get(name)) for name in _TOOLS):
        raise Unusable(TOOL_CALLS)


def marks_read(row: Line, kind: str) -> set[str]:
    """The columns that `check_row` reads a mark from."""
    true, false = _flags(kind)
    weight = () if kind == "prompts" else ("weight",)
    names = (*true, *false, *weight)
    return {name for name in names if name in row.fields and flag(row.fields[name]) is not None}


def _flags(kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Columns that must not be true, and those that must not be false."""
    if kind == "prompts":  # a row that must not be trained may still be sampled from
        return _GONE, ()
    return (*_GONE, *_MASKED), (*_TRAINED, *(_GOOD if kind == "demonstrations" else ()))


def turn_is_trained(line: Line, turn: Mapping[str, object], name: str) -> bool:
    """Whether a turn may be trained, by the marks of the turn.

    Raises:
        DataLineError: If its weight is neither 0 nor 1.
    """
    weight = turn.get("weight")
    if weight is not None and flag(weight) is None:
        line.fail(
            f'"{name}.weight" is {weight!r}; a turn is trained or not',
            fix="write 1 or 0, or leave the weight out",
        )
    if weight is not None and flag(weight) is False:
        return False
    return not (
        any(flag(turn.get(key)) is False for key in _TRAINED)
        or any(flag(turn.get(key)) is True for key in _MASKED)
    )


def turn_holds_media(turn: Mapping[str, object]) -> bool:
    """Whether a turn has images, audio or video."""
    return any(_holds(turn.get(name)) for name in _MEDIA)


def flag(value: object) -> bool | None:
    """A mark as a boolean; None where it is not one."""
    if isinstance(value, str):
        value = value.strip().lower()
    if not isinstance(value, bool | int | float | str):
        return None
    return True if value in _TRUE else False if value in _FALSE else None


_MARKS = frozenset((*_GOOD, *_TRAINED, *_MASKED, *_GONE, *_MEDIA, *_TOOLS, "weight"))


def _is_zero(value: object) -> bool:
    return value is not None and flag(value) is False and value != -1


def _holds(value: object) -> bool:
    if isinstance(value, str):
        return bool(value.strip()) and value.strip() not in ("[]", "{}")
    return isinstance(value, list | dict | bytes) and bool(value)


def _lists(value: object) -> bool:
    """Whether a value is a non-empty list or object of tools, also as JSON text."""
    if isinstance(value, str):
        return value.strip()[:1] in ("[", "{") and value.strip() not in ("[]", "{}", "[{}]")
    return isinstance(value, list | dict) and bool(value) and value != [None]

"""Marks that change what a row or a turn means: those that say it is bad, or not to be trained.

They are looked for in every column, also where `columns` maps others: a row that is marked as bad
must not be trained as good because nobody asked for the mark.
"""

from __future__ import annotations

from collections.abc import Mapping

from workers.data.formats.jsonl import Line
from workers.data.rows.unusable import TOOL_CALLS, Unusable

MEDIA = "holds images, audio or video"
# Columns that are true of good replies; of a demonstration they must not be false.
_GOOD = ("label", "is_safe", "safe", "is_correct", "accepted", "is_accepted", "review_result")
_TRAINED = ("train", "trainable", "loss", "train_on_turn")
_MASKED = ("masked", "mask")
_GONE = ("deleted", "is_deleted", "removed", "spam", "is_spam")
_MEDIA = ("images", "image", "audio", "audios", "video", "videos")
_TOOLS = ("tools", "functions", "tool_calls", "function_call")
_FALSE = (False, 0, -1, "false", "no", "0", "-1")
_TRUE = (True, 1, "true", "yes", "1")


def check_row(row: Line, kind: str, mapped: set[str]) -> None:
    """Refuse a row whose marks say that it is of no use for a kind.

    Args:
        row: As it was read, all columns under their own names.
        kind: What it is read as.
        mapped: Columns that `columns` gives a meaning of their own; they are no marks.

    Raises:
        Unusable: If one does; names the column.
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
    if kind == "prompts":  # what is not to be trained may well be asked
        return _GONE, ()
    return (*_GONE, *_MASKED), (*_TRAINED, *(_GOOD if kind == "demonstrations" else ()))


def turn_is_trained(line: Line, turn: Mapping[str, object], name: str) -> bool:
    """Whether a turn may be trained, by its own marks.

    Raises:
        DataLineError: If its weight is another than 0 and 1.
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
    """Whether a turn comes with more than text."""
    return any(_holds(turn.get(name)) for name in _MEDIA)


def flag(value: object) -> bool | None:
    """A mark as a truth value; None where it is none."""
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
    """Whether a list or object of tools is given, and not empty; also as JSON text."""
    if isinstance(value, str):
        return value.strip()[:1] in ("[", "{") and value.strip() not in ("[]", "{}", "[{}]")
    return isinstance(value, list | dict) and bool(value) and value != [None]

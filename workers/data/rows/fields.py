"""The known names of the fields of a row."""

from __future__ import annotations

import difflib
from typing import NoReturn

from workers.data.formats.line import Line, shown

DIALOGUES = ("messages", "conversations", "conversation")
INPUTS = ("input", "context")
SYSTEMS = ("system", "system_prompt")
USERS = ("user", "user_id")
ANNOTATORS = ("annotator", "annotator_id", "worker", "worker_id")
# Fields that may hold the reply to each kind of prompt; messages use the first name.
REPLIES_TO = {
    "prompt": ("completion", "response", "answer", "output"),
    "question": ("answer", "response", "completion", "output"),
    "instruction": ("output", "response", "answer", "completion"),
}
REPLIES = REPLIES_TO["prompt"]
# Every field that a reply may answer.
ASKING = (*REPLIES_TO, *DIALOGUES, *INPUTS, *SYSTEMS, "history")
_KNOWN = (*REPLIES_TO, *DIALOGUES, *REPLIES, "text", "chosen", "rejected", "completions", "ranks")


def first_of(line: Line, names: tuple[str, ...]) -> str:
    """The first of these names that the row has; "" = none."""
    return next((name for name in names if line.fields.get(name) is not None), "")


def only_of(line: Line, names: tuple[str, ...]) -> str:
    """The one of these names that the row has; "" = none. Empty fields yield to others.

    Raises:
        DataLineError: If it has several whose values differ.
    """
    present = [name for name in names if line.fields.get(name) is not None]
    found = [name for name in present if line.fields[name] not in ("", [])] or present[:1]
    if len(found) > 1 and any(line.fields[name] != line.fields[found[0]] for name in found):
        ambiguous(line, found)
    line.used.update(present)
    return found[0] if found else ""


def ambiguous(line: Line, names: list[str]) -> NoReturn:
    """Refuse a row in which several fields may be meant."""
    line.fail(
        f"several fields may be meant: {', '.join(names)}",
        fix="say which one by data.columns, such as prompt=" + names[0],
    )


def user_of(line: Line) -> str:
    """The user who wrote the row; "" = not named."""
    name = first_of(line, USERS)
    return line.name(name) if name else ""


def misspelt(line: Line) -> str:
    """A known name that an unknown one of the row is close to, for messages; "" = none."""
    for name in line.fields:
        near = difflib.get_close_matches(name, _KNOWN, n=1, cutoff=0.8)
        if near and near[0] not in line.fields:
            return f'"{near[0]}" in place of "{shown(name)}"'
    return ""

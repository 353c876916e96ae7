"""Earlier turns of a dialogue, which some data sets keep in a separate field."""

from __future__ import annotations

from workers.data.formats.line import Line
from workers.data.rows.dialogues import turns_of
from workers.data.rows.examples import Dialogue, Message


def earlier_turns(line: Line) -> Dialogue:
    """The turns of "history": pairs of question and answer, or messages.

    Raises:
        DataLineError: If it is neither.
        Unusable: As `parse_dialogue`.
    """
    if "history" not in line.fields:
        return ()
    value = line.parsed(line.field("history"))
    if value in ("", []):
        return ()
    if not isinstance(value, list):
        line.fail(
            '"history" must be a list of pairs or of messages',
            fix="map the column that asks (data.columns), if that is what this one does",
        )
    turns: list[Message] = []
    for i, item in enumerate(value):
        name = f"history[{i}]"
        if item is None:
            continue
        if isinstance(item, list):
            if len(item) != 2:
                line.fail(f'"{name}" must be a pair of question and answer')
            asked, told = (line.checked_text(text, f"{name}[{j}]") for j, text in enumerate(item))
            turns += Message("user", asked), Message("assistant", told)
        else:
            turns += turns_of(line, [item], name)
    return tuple(turns)

"""Why rows are of no use, in fixed words."""

from __future__ import annotations

TOOL_CALLS = "holds tool calls"
MORE_THAN_TEXT = "a turn holds more than text"
UNTRAINED = "marked as not to be trained"


class Unusable(Exception):  # noqa: N818 - no error: a row to be counted
    """A row that is well formed but of no use; the argument is a fixed reason."""

"""The error for well-formed rows that cannot be used, and its fixed reasons."""

from __future__ import annotations

TOOL_CALLS = "holds tool calls"
MORE_THAN_TEXT = "a turn holds more than text"
UNTRAINED = "marked as not to be trained"


class Unusable(Exception):  # noqa: N818 - not an error: the row is counted
    """A row is well formed but cannot be used; the argument is a fixed reason."""

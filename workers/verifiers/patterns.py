"""Regular expressions of the configuration, with a time limit: one may backtrack without end."""

from __future__ import annotations

from collections.abc import Callable

import regex

from workers.errors import ConfigError
from workers.verifiers.verifier import UnverifiableError

SECONDS = 1.0  # for one search in one response


def compiled(pattern: str) -> regex.Pattern[str]:
    """The compiled pattern; `.` does not match line breaks unless it says `(?s)`.

    Raises:
        ConfigError: it is no regular expression.
    """
    try:
        return regex.compile(pattern)
    except (regex.error, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"{pattern!r:.80} is no regular expression: {error}",
            where="pattern",
            fix="correct it; the syntax is that of Python's regex package",
        ) from error


def found_in(pattern: regex.Pattern[str], text: str) -> regex.Match[str] | None:
    """The last match of a pattern in a text.

    Raises:
        UnverifiableError: the search took too long.
    """
    last = None
    try:
        for match in pattern.finditer(text, timeout=SECONDS):
            last = match
    except TimeoutError as error:
        raise UnverifiableError(f"the pattern took over {SECONDS:g} s") from error
    return last


def cutter(pattern: str) -> Callable[[str], str | None]:
    """A function that cuts the answer out of a response: None if the pattern is not in it.

    The answer is the first group of the last match, or the whole match of a pattern without groups;
    without a pattern it is the whole response.

    Raises:
        ConfigError: it is no regular expression.
    """
    if not pattern:
        return lambda text: text
    expression = compiled(pattern)

    def cut(text: str) -> str | None:
        match = found_in(expression, text)
        if match is None:
            return None
        return match[1] if expression.groups else match[0]

    return cut

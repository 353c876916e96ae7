"""A user's reviser: its arguments and return value.

It is called with lists, one item per answer, and returns one text per answer: the revision, or None
if it has none. It gets `prompts` and `responses`, or the lists that its parameters name:
`principles` are the revision requests that were drawn; `messages`, `rendered` and `rows` are as for
a reward function.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from workers.data.rows.asked import Asked, as_messages, plain_text
from workers.process.user_code import load_function
from workers.user_functions.answers import Answering
from workers.user_functions.calls import Caller
from workers.user_functions.child_process import UserProcess
from workers.user_functions.signature import REVISER, Arguments, bind

WHERE = "constitution.function"
_NAME = "critic function"


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer to revise."""

    asked: Asked
    response: str
    principle: str  # the revision request


def load_reviser(path: str, folder: str = "") -> Caller:
    """The function at an import path, called in this process.

    Raises:
        ConfigError: It cannot be imported, or is not callable as a reviser.
    """
    function = bind(load_function(path, WHERE, folder), REVISER, WHERE)
    return Caller(_NAME, _arguments, Answering(_NAME, function, texts=True))


@contextmanager
def started_reviser(path: str, folder: str = "") -> Iterator[Caller]:
    """As `load_reviser`, but in a child process, which ends with the `with` block."""
    process = UserProcess(_NAME, "reviser", path, folder, WHERE)
    try:
        yield Caller(_NAME, _arguments, process, process.prepare)
    finally:
        process.close()


def _arguments(drafts: Sequence[Draft]) -> Arguments:
    return {
        "prompts": [plain_text(each.asked.context) for each in drafts],
        "responses": [each.response for each in drafts],
        "principles": [each.principle for each in drafts],
        "messages": [as_messages(each.asked.context) for each in drafts],
        "rendered": [each.asked.rendered for each in drafts],
        "rows": [each.asked.columns() for each in drafts],
    }

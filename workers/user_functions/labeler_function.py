"""A user's labeler: its arguments and return value.

It is called with lists, one item per prompt, and returns one list per prompt: a number for each of
its completions, higher is better, equal is a tie; or None, if it cannot tell. It gets `prompts` and
`completions` (a list of texts per prompt), or the lists that its parameters name; `messages`,
`rendered` and `rows` are as for a reward function.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from workers.data.rows.asked import Asked, as_messages, plain_text
from workers.process.user_code import load_function
from workers.user_functions.answers import Answering
from workers.user_functions.calls import Caller, Patience
from workers.user_functions.child_process import UserProcess
from workers.user_functions.signature import LABELER, Arguments, Bound, bind

WHERE = "label.function"
_NAME = "labeler function"
# What a reason calls a list that does not have a number per completion.
_OTHER_LENGTH = type("list of another length", (), {})


@dataclass(frozen=True, slots=True)
class Answers:
    """The completions of one prompt."""

    asked: Asked
    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Flat:
    """Calls the function, and returns the numbers of all prompts in one list."""

    function: Bound

    def __call__(self, arguments: Arguments) -> list[Any]:
        counts = [len(texts) for texts in arguments["completions"]]
        returned = self.function(arguments)
        given = returned if isinstance(returned, list | tuple) else []
        if len(given) != len(counts):
            return []  # the numbers of no prompt are known
        return [value for each, k in zip(given, counts, strict=True) for value in _numbers(each, k)]


def _numbers(given: Any, count: int) -> Sequence[Any]:
    """A value per completion; where there is none, what was given instead."""
    if hasattr(given, "tolist"):  # NumPy, torch
        given = given.tolist()
    if not isinstance(given, list | tuple):
        return [given] * count
    return given if len(given) == count else [_OTHER_LENGTH()] * count


def load_labeler(path: str, folder: str = "") -> Caller:
    """The function at an import path, called in this process.

    Raises:
        ConfigError: It cannot be imported, or is not callable as a labeler.
    """
    function = bind(load_function(path, WHERE, folder), LABELER, WHERE)
    answering: Any = _Flat(function)
    return Caller(_NAME, _arguments, Answering(_NAME, answering), sizes=_sizes)


@contextmanager
def started_labeler(path: str, folder: str = "") -> Iterator[Caller]:
    """As `load_labeler`, but in a child process, which ends with the `with` block."""
    process = UserProcess(_NAME, "labeler", path, folder, WHERE)
    try:
        yield Caller(_NAME, _arguments, process, process.prepare, _sizes)
    finally:
        process.close()


def call_labeler(
    labeler: Caller, asked: Sequence[Answers], patience: Patience
) -> list[list[float] | str]:
    """The numbers of the completions of each prompt, or why there are none.

    As `Caller.ask`, so each call has a deadline, and calls that hang end soon.
    """
    return [reply.reason or list(reply.steps) for reply in labeler.ask(asked, patience)]


def _sizes(asked: Sequence[Answers]) -> list[int]:
    return [len(each.texts) for each in asked]


def _arguments(asked: Sequence[Answers]) -> Arguments:
    return {
        "prompts": [plain_text(each.asked.context) for each in asked],
        "completions": [[*each.texts] for each in asked],
        "messages": [as_messages(each.asked.context) for each in asked],
        "rendered": [each.asked.rendered for each in asked],
        "rows": [each.asked.columns() for each in asked],
    }

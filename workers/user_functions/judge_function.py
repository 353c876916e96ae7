"""A user's pairwise judge: its arguments and return value.

It is called with lists, one item per pair of answers, and returns a number per pair: 1 if answer
`a` is better, 0 if `b` is, .5 for a tie, or a number between. It gets `prompts`, `a` and `b`, or
the lists that its parameters name; `messages` and `rendered` are as for a reward function.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from workers.data.rows.asked import Asked, as_messages, plain_text
from workers.errors import JudgeError
from workers.process.user_code import load_function
from workers.user_functions.answers import Answering
from workers.user_functions.calls import Caller, Patience
from workers.user_functions.child_process import UserProcess
from workers.user_functions.signature import JUDGE, Arguments, bind

WHERE = "evaluate.judge_function"
_NAME = "judge function"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt."""

    asked: Asked
    a: str
    b: str


def load_judge(path: str, folder: str = "") -> Caller:
    """The function at an import path, called in this process; it must return 0 to 1.

    Raises:
        ConfigError: It cannot be imported, or is not callable as a judge.
    """
    function = bind(load_function(path, WHERE, folder), JUDGE, WHERE)
    return Caller(_NAME, _arguments, Answering(_NAME, function, 0.0, 1.0))


@contextmanager
def started_judge(path: str, folder: str = "") -> Iterator[Caller]:
    """As `load_judge`, but in a child process, which ends with the `with` block."""
    process = UserProcess(_NAME, "judge", path, folder, WHERE)
    try:
        yield Caller(_NAME, _arguments, process, process.prepare)
    finally:
        process.close()


def call_judge(
    judge: Caller, pairs: Sequence[Pair], patience: Patience, failed_fraction: float
) -> list[float | None]:
    """One outcome per pair: 1 if the first answer is better, 0 if the second is, .5 for a tie.

    Args:
        judge: The function.
        pairs: The pairs to judge.
        patience: Timeout and retries.
        failed_fraction: Fraction of the pairs that may have no outcome (None).

    Raises:
        JudgeError: After all retries, more pairs than that, or all pairs, have no outcome.
    """
    replies = judge.ask(pairs, patience)
    failed = [reply for reply in replies if reply.reason]
    if len(failed) > failed_fraction * len(pairs) or len(failed) == len(pairs):
        first = failed[0]
        raise JudgeError(
            f"{len(failed)} of {len(pairs)} pairs got no outcome: {first.reason}"
            + (f": {first.words}" if first.words else ""),
            where=WHERE,
            fix="return 1, .5 or 0 for each pair, in their order",
        )
    return [None if reply.reason else reply.value for reply in replies]


def _arguments(pairs: Sequence[Pair]) -> Arguments:
    return {
        "prompts": [plain_text(pair.asked.context) for pair in pairs],
        "a": [pair.a for pair in pairs],
        "b": [pair.b for pair in pairs],
        "messages": [as_messages(pair.asked.context) for pair in pairs],
        "rendered": [pair.asked.rendered for pair in pairs],
        "rows": [pair.asked.columns() for pair in pairs],
    }

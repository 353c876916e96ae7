"""A user's pairwise judge: what it is given, and what it may answer.

It is called with lists, one item a pair of answers, and returns 1 where answer `a` is better, 0
where `b` is, .5 for a tie, or a number between. It gets `prompts`, `a` and `b`, or what the names
of its parameters say: `messages` and `rendered` are those of a reward function.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from workers.data.rows.asked import Asked, as_messages, plain_text
from workers.errors import JudgeError
from workers.user_functions.answers import Answering
from workers.user_functions.calls import Caller, Patience
from workers.user_functions.child_process import UserProcess
from workers.user_functions.code import load_function
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
    """The function at an import path, called in this process; replies are from 0 to 1.

    Raises:
        ConfigError: It cannot be imported, or not be called as a judge.
    """
    function = bind(load_function(path, WHERE, folder), JUDGE, WHERE)
    return Caller(_NAME, _arguments, Answering(_NAME, function, 0.0, 1.0))


@contextmanager
def started_judge(path: str, folder: str = "") -> Iterator[Caller]:
    """The same in a process of its own, which ends behind the block."""
    process = UserProcess(_NAME, "judge", path, folder, WHERE)
    try:
        yield Caller(_NAME, _arguments, process, process.prepare)
    finally:
        process.close()


def call_judge(
    judge: Caller, pairs: Sequence[Pair], patience: Patience, failed_fraction: float
) -> list[float | None]:
    """One outcome a pair: 1 where the first answer is better, 0 the second, .5 a tie.

    Args:
        judge: The function.
        pairs: What it is asked.
        patience: Deadline and retries.
        failed_fraction: Share of the pairs that may be left without an outcome (None).

    Raises:
        JudgeError: More pairs than that got no outcome, however often it was asked, or all.
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
    }

"""A user's pairwise judge: how it is called and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from workers.errors import JudgeError

PairwiseJudge = Callable[[list[str], list[str], list[str]], Sequence[float]]

_WHERE = "evaluate.judge_function"


def call_judge(
    function: PairwiseJudge, prompts: list[str], a: list[str], b: list[str]
) -> list[float]:
    """One outcome a prompt: 1 where the first answer is better, 0 the second, .5 a tie.

    Args:
        function: the user's judge.
        prompts: (n,) texts.
        a: (n,) answers of the first model.
        b: (n,) answers of the second.

    Raises:
        JudgeError: the function raised, or returned anything but n numbers in [0, 1].
    """
    try:
        returned = list(function(prompts, a, b))
    except Exception as error:
        # A plug-in may raise anything: nothing is swallowed, it gets a place and a way out.
        raise JudgeError(
            f"the judge raised {type(error).__name__}: {error}",
            where=_WHERE,
            mend="mend the function; error.log in the run folder has its traceback",
        ) from error
    if len(returned) != len(prompts):
        raise JudgeError(
            f"the judge returned {len(returned)} outcomes for {len(prompts)} prompts",
            where=_WHERE,
            mend="return 1, .5 or 0 for each prompt, in their order",
        )
    return [_outcome(value, number) for number, value in enumerate(returned)]


def _outcome(value: float, number: int) -> float:
    try:
        outcome = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # a tensor of several numbers
        outcome = math.nan
    if not 0.0 <= outcome <= 1.0:
        raise JudgeError(
            f"outcome {number} of the judge is {value!r:.60}",
            where=_WHERE,
            mend="return 1, .5 or 0 for each prompt",
        )
    return outcome

"""A user's reward function: how it is found, called and checked."""

from __future__ import annotations

import importlib
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workers.caught import Caught
from workers.errors import ConfigError
from workers.messages import FloatArray
from workers.pulse import beat

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]
ScoredTexts = tuple[FloatArray, list[str]]  # (B,) values, NaN where failed; (B,) reasons, "" = ok

_log = logging.getLogger(__name__)

_LATE = "reward function did not answer in time"
_LATE_IN_A_ROW = 2
_BEAT_SECONDS = 1.0
_LARGEST = float(np.finfo(np.float32).max)

# What data and services do to a function. A name or a module that does not exist is a mistake in
# the function itself: it ends the run.
_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,  # files and the network, time-outs included
    RuntimeError,
    TypeError,
    ValueError,
)


def load_function(path: str, where: str = "reward.function") -> Callable[..., Any]:
    """Import `package.module:callable`.

    Args:
        path: What to import.
        where: The configuration key that names it, for errors.

    Raises:
        ConfigError: the path is malformed, or nothing callable stands there.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ConfigError(
            f"not a function path: {path!r}",
            where=where,
            mend='write it as "package.module:callable"',
        )
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"cannot import {path!r}: {error}",
            where=where,
            mend="make the module importable on every node, for example by PYTHONPATH",
        ) from error
    if not callable(found):
        raise ConfigError(f"{path!r} is not callable", where=where)
    return found


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a function may take, and how often it is asked again."""

    seconds: float = 0.0  # for one call; 0 = as long as it likes
    retries: int = 0  # of the sequences that failed


def score_texts(
    function: RewardFunction,
    prompts: list[str],
    responses: list[str],
    patience: Patience = Patience(),
) -> ScoredTexts:
    """Call the function on a batch; when it raises, on one sequence at a time.

    So one sequence that the function cannot stomach fails alone. A result of the wrong length says
    nothing about any sequence: all fail. What failed is tried again, as a batch of its own.

    Args:
        function: (prompts, responses) to one number each.
        prompts: (B,) texts.
        responses: (B,) texts.
        patience: Deadline and retries. A call that is late goes on in a thread of its own, and its
            answer is not used.

    Returns:
        (B,) values in reward units, NaN where failed, and (B,) reasons, empty where well.
    """
    function = _within(function, patience.seconds) if patience.seconds else function
    values, reasons = _score_once(function, prompts, responses)
    for _ in range(patience.retries):
        failed = [n for n, reason in enumerate(reasons) if reason]
        if not failed:
            break
        again = _score_once(function, [prompts[n] for n in failed], [responses[n] for n in failed])
        for n, value, reason in zip(failed, *again, strict=True):
            values[n], reasons[n] = value, reason
    return values, reasons


def _score_once(function: RewardFunction, prompts: list[str], responses: list[str]) -> ScoredTexts:
    called = _call(function, prompts, responses)
    if isinstance(called, str) and len(prompts) > 1:
        singles = _one_by_one(function, prompts, responses)
        parts = [_check(single, 1) for single in singles]
        values = [value for part, _ in parts for value in part]
        return np.array(values, np.float32), [reason for _, part in parts for reason in part]
    values, reasons = _check(called, len(prompts))
    return np.array(values, np.float32), reasons


def _one_by_one(
    function: RewardFunction, prompts: list[str], responses: list[str]
) -> list[Sequence[float] | str]:
    """Each sequence alone; once a few in a row were late, the rest counts as late too."""
    found: list[Sequence[float] | str] = []
    for prompt, response in zip(prompts, responses, strict=True):
        hangs = len(found) >= _LATE_IN_A_ROW and found[-_LATE_IN_A_ROW:] == [_LATE] * _LATE_IN_A_ROW
        found.append(_LATE if hangs else _call(function, [prompt], [response]))
    return found


class LateError(TimeoutError):
    """A function did not return in time."""


def _within(function: RewardFunction, seconds: float) -> RewardFunction:
    """The function, given up after so many seconds.

    Python cannot end a thread: the late call stays behind, and ends with the process at the latest.
    """

    def timely(prompts: list[str], responses: list[str]) -> Sequence[float]:
        caught, returned = Caught(BaseException), []

        def run() -> None:
            with caught:
                returned.append(list(function(prompts, responses)))

        thread = threading.Thread(target=run, name="reward function", daemon=True)
        thread.start()
        until = time.monotonic() + seconds
        while thread.is_alive() and (left := until - time.monotonic()) > 0:
            thread.join(min(left, _BEAT_SECONDS))
            beat()  # this deadline stands in for the signs of progress that passes of a model give
        if thread.is_alive():
            raise LateError(f"no answer within {seconds:g} s")
        if caught.error is not None:
            raise caught.error
        return returned[0]

    return timely


def _call(
    function: RewardFunction, prompts: list[str], responses: list[str]
) -> Sequence[float] | str:
    """What the function returns, or why it did not."""
    try:
        return list(function(prompts, responses))
    except LateError as error:
        _log.warning("the reward function was late on %d sequences: %s", len(prompts), error)
        return _LATE
    except _FAILURES as error:
        _log.warning("the reward function failed on %d sequences: %r", len(prompts), error)
        return f"reward function raised {type(error).__name__}"


def _check(returned: Sequence[float] | str, wanted: int) -> tuple[list[float], list[str]]:
    if isinstance(returned, str):
        return [math.nan] * wanted, [returned] * wanted
    if len(returned) != wanted:
        reason = f"reward function returned {len(returned)} numbers for {wanted} sequences"
        return [math.nan] * wanted, [reason] * wanted
    checked = [_number(value) for value in returned]
    return [value for value, _ in checked], [reason for _, reason in checked]


def _number(value: float) -> tuple[float, str]:
    try:
        number = float(value)
    except _FAILURES:  # a tensor of several numbers is a RuntimeError, a vast integer an overflow
        return math.nan, f"reward function returned a {type(value).__name__}"
    # Beyond float32 a finite number would turn infinite on its way into `Scores`.
    if not abs(number) <= _LARGEST:
        return math.nan, "reward function: not finite"
    return number, ""

"""A user's reward function: how it is found, called and checked."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workers.errors import ConfigError
from workers.messages import FloatArray

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]
ScoredTexts = tuple[FloatArray, list[str]]  # (B,) values, NaN where failed; (B,) reasons, "" = ok

_log = logging.getLogger(__name__)

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


def score_texts(function: RewardFunction, prompts: list[str], responses: list[str]) -> ScoredTexts:
    """Call the function on a batch; when it raises, on one sequence at a time.

    So one sequence that the function cannot stomach fails alone. A result of the wrong length says
    nothing about any sequence: all fail.

    Args:
        function: (prompts, responses) to one number each.
        prompts: (B,) texts.
        responses: (B,) texts.

    Returns:
        (B,) values in reward units, NaN where failed, and (B,) reasons, empty where well.
    """
    called = _call(function, prompts, responses)
    if isinstance(called, str) and len(prompts) > 1:
        singles = [_call(function, [p], [r]) for p, r in zip(prompts, responses, strict=True)]
        parts = [_check(single, 1) for single in singles]
        values = [value for part, _ in parts for value in part]
        return np.array(values, np.float32), [reason for _, part in parts for reason in part]
    values, reasons = _check(called, len(prompts))
    return np.array(values, np.float32), reasons


def _call(
    function: RewardFunction, prompts: list[str], responses: list[str]
) -> Sequence[float] | str:
    """What the function returns, or why it did not."""
    try:
        return list(function(prompts, responses))
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

"""One call of a user's function, with all exceptions caught and all return values checked.

An exception of the function becomes the failure reason of the sequences in the call; nothing that
the function raises, returns or changes ends the process.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from workers.process.caught_errors import Caught
from workers.process.user_code import kind_of, place_of, words_of
from workers.user_functions.signature import Arguments, Bound

_log = logging.getLogger(__name__)

_MOST_STEPS = 10_000  # of one response
_MOST_CHARACTERS = 1_000_000  # of one text
_LARGEST = float(np.finfo(np.float32).max)  # larger numbers become infinite in float32
_UNORDERED = (set(), {}, {}.values(), {}.items(), b"", bytearray(), memoryview(b""))
_NO_SEQUENCES = (str, bytes, bytearray, memoryview, *(type(iter(each)) for each in _UNORDERED))


@dataclass(frozen=True, slots=True)
class Reply:
    """The number for one sequence, or why there is none."""

    value: float  # NaN if failed
    reason: str = ""  # one of few texts, so that failures can be counted by it; "" = ok
    words: str = ""  # message of the function's error
    lost: bool = False  # the function's process ended or was killed
    # parts of the value: one per step, or per completion of a prompt; () = one number
    steps: tuple[float, ...] = ()
    text: str = ""  # of a function that returns texts, whose value is 0


Outcome = list[Reply] | Reply  # one reply per sequence, or a single one if the whole call failed


@dataclass(frozen=True, slots=True)
class Answering:
    """A function and the range of the numbers that it may return.

    Attributes:
        name: Name of the function in failure reasons, e.g. "reward function".
        function: Gets the lists of one call, which it may change.
        lowest: The smallest number that it may return.
        highest: The largest number that it may return.
        steps: Whether it may return a list of numbers for an item, one per step.
        texts: Whether it returns a text for each item.
    """

    name: str
    function: Bound
    lowest: float = -_LARGEST
    highest: float = _LARGEST
    steps: bool = False  # an item's value may be a list of numbers, whose sum counts
    texts: bool = False  # an item's value is a text

    def __call__(self, arguments: Arguments, count: int, seconds: float = 0.0) -> Outcome:
        """Call the function on `count` items in the thread of the caller.

        Args:
            arguments: Lists of `count` items each.
            count: How many numbers it must return.
            seconds: Ignored: a timeout needs a process that can be killed.
        """
        del seconds
        replies: list[Reply] = []
        caught = Caught(BaseException)  # a SystemExit of user code must not end this process
        folder = _working_folder()
        with caught:
            # Checked inside the block, because classes of the returned values may raise too.
            replies.extend(self._checked(self.function(arguments), count))
        if folder and _working_folder() != folder:
            with suppress(OSError):  # it may have been removed
                os.chdir(folder)  # keep the meaning of relative paths for the next call
        if caught.error is not None:
            reply = self._raised(caught.error)
            _log.warning("on %d items: %s: %s", count, reply.reason, reply.words)
            return reply
        return replies

    def _raised(self, error: BaseException) -> Reply:
        place = place_of(error)
        at = f" at {place}" if place else ""
        return Reply(math.nan, f"{self.name} raised {kind_of(error)}{at}", words_of(error))

    def _checked(self, returned: Any, wanted: int) -> list[Reply]:
        values = _values(returned, wanted + 1)
        if values is None:
            what = "texts" if self.texts else "numbers"
            reason = f"{self.name} returned {_form(returned)}, not a list of {what}"
            return [Reply(math.nan, reason)] * wanted
        if len(values) != wanted:
            reason = f"{self.name} returned the wrong number of values"
            found = f"{len(values)}" if len(values) < wanted else "more than one each"
            said = f"{found} for {wanted}, in the last call"
            return [Reply(math.nan, reason, said)] * wanted
        return [self._looked_at(value) for value in values]

    def _looked_at(self, value: Any) -> Reply:
        caught = Caught(BaseException)  # from the value's __float__, or a tensor without data
        with caught:
            return self._text(value) if self.texts else self._number(value)
        assert caught.error is not None
        return self._raised(caught.error)

    def _text(self, value: Any) -> Reply:
        if not isinstance(value, str):
            return Reply(math.nan, f"{self.name} returned {_form(value)} for one item")
        if len(value) > _MOST_CHARACTERS:
            return Reply(math.nan, f"{self.name} returned a text that is far too long")
        return Reply(0.0, text=value)

    def _number(self, value: Any) -> Reply:
        parts = _values(value, _MOST_STEPS + 1) if self.steps else None
        if parts is not None:
            return self._summed(parts)
        number = _number(value)
        if number is None:
            return Reply(math.nan, f"{self.name} returned {_form(value)} for one item")
        if math.isnan(number):
            return Reply(math.nan, f"{self.name} returned NaN for one item")
        if not self.lowest <= number <= self.highest:
            reason = f"{self.name} returned a number out of range for one item"
            return Reply(math.nan, reason, f"{number:.6g}")
        return Reply(number)

    def _summed(self, parts: list[Any]) -> Reply:
        if not 0 < len(parts) <= _MOST_STEPS:
            return Reply(math.nan, f"{self.name} returned no or too many step rewards for one item")
        numbers = [_number(each) for each in parts]
        for number in numbers:
            if number is None or not self.lowest <= number <= self.highest:  # NaN is in no range
                return Reply(math.nan, f"{self.name} returned a step reward that is no number")
        found = tuple(number for number in numbers if number is not None)
        total = math.fsum(found)
        if not self.lowest <= total <= self.highest:
            return Reply(math.nan, f"{self.name} returned a number out of range for one item")
        return Reply(total, steps=found)


def _working_folder() -> str:
    """The working folder of this process; "" if it has been removed."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""


def _values(returned: Any, most: int) -> list[Any] | None:
    """The returned values as a list; None if their form does not assign a value to each item.

    Only the iteration counts, because lengths and shapes of other classes can be wrong. It stops
    after `most` values, because it may be endless.
    """
    if isinstance(returned, _NO_SEQUENCES):
        return None
    shape = getattr(returned, "shape", None)  # NumPy, torch, pandas
    row = isinstance(shape, tuple) and len(shape) == 1
    if row or isinstance(returned, Sequence | Iterator):
        return list(islice(returned, most))
    return None


def _number(value: Any) -> float | None:
    """A real number as a float; None for anything else, including numeric strings."""
    if getattr(value, "shape", None) == () and callable(item := getattr(value, "item", None)):
        if isinstance(value, np.generic | np.ndarray) and value.dtype.kind not in "biufO":
            return None  # e.g. dates, which are stored as numbers
        if value is np.ma.masked:
            return None  # its item() would be 0
        value = item()
    if not isinstance(value, Real | Decimal):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (ValueError, TypeError):  # a signalling NaN
        return math.nan


def _form(value: Any) -> str:
    name = " ".join(type(value).__name__.split())
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"a {name} of shape {tuple(shape)}"
    return "nothing (None)" if value is None else f"a {name}"

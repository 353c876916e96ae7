"""One call of a user's function: whatever it raises is caught, whatever it returns is checked.

This is a border with foreign code. What the function raises is a failure of the sequences that it
was called on, with the reason; nothing that it raises, returns or changes ends the process.
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
from workers.user_functions.code import kind_of, place_of, words_of
from workers.user_functions.signature import Arguments, Bound

_log = logging.getLogger(__name__)

_LARGEST = float(np.finfo(np.float32).max)  # beyond it a number turns infinite on its way
_UNORDERED = (set(), {}, {}.values(), {}.items(), b"", bytearray(), memoryview(b""))
_NO_SEQUENCES = (str, bytes, bytearray, memoryview, *(type(iter(each)) for each in _UNORDERED))


@dataclass(frozen=True, slots=True)
class Reply:
    """The number for one sequence, or why there is none."""

    value: float  # NaN where failed
    reason: str = ""  # of a bounded set, so that failures can be counted by it; "" = well
    words: str = ""  # what the function's own error says
    lost: bool = False  # the process of the function is gone, or was ended


Outcome = list[Reply] | Reply  # a reply a sequence; or one for all, where the call failed


@dataclass(frozen=True, slots=True)
class Answering:
    """A function, and which numbers it may return.

    Attributes:
        name: What the function is called in reasons, e.g. "reward function".
        function: Gets the lists of one call, which it may change.
        lowest: The smallest number that it may return.
        highest: The largest one.
    """

    name: str
    function: Bound
    lowest: float = -_LARGEST
    highest: float = _LARGEST

    def __call__(self, arguments: Arguments, count: int, seconds: float = 0.0) -> Outcome:
        """Call the function on `count` items in the thread of the caller.

        Args:
            arguments: Lists of `count` items each.
            count: How many numbers it must return.
            seconds: Not kept to: a deadline needs a process that can be ended.
        """
        del seconds
        replies: list[Reply] = []
        caught = Caught(BaseException)  # SystemExit of foreign code is not meant for this process
        folder = _working_folder()
        with caught:
            # What it returns is looked at here, because its own classes may raise then, too.
            replies.extend(self._checked(self.function(arguments), count))
        if folder and _working_folder() != folder:
            with suppress(OSError):  # it may have been removed
                os.chdir(folder)  # relative paths mean the same in the next call
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
            reason = f"{self.name} returned {_form(returned)}, not a list of numbers"
            return [Reply(math.nan, reason)] * wanted
        if len(values) != wanted:
            reason = f"{self.name} returned the wrong number of values"
            found = f"{len(values)}" if len(values) < wanted else "more than one each"
            said = f"{found} for {wanted}, in the last call"
            return [Reply(math.nan, reason, said)] * wanted
        return [self._looked_at(value) for value in values]

    def _looked_at(self, value: Any) -> Reply:
        caught = Caught(BaseException)  # of its own __float__, or of a tensor without memory
        with caught:
            return self._number(value)
        assert caught.error is not None
        return self._raised(caught.error)

    def _number(self, value: Any) -> Reply:
        number = _number(value)
        if number is None:
            return Reply(math.nan, f"{self.name} returned {_form(value)} for one item")
        if math.isnan(number):
            return Reply(math.nan, f"{self.name} returned NaN for one item")
        if not self.lowest <= number <= self.highest:
            reason = f"{self.name} returned a number out of range for one item"
            return Reply(math.nan, reason, f"{number:.6g}")
        return Reply(number)


def _working_folder() -> str:
    """The working folder of this process; "" if it has been removed."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""


def _values(returned: Any, most: int) -> list[Any] | None:
    """What was returned as a list; None if its form does not say which value is whose.

    Only what iterating gives counts: lengths and shapes of other classes can say anything. What
    goes on after `most` values is cut there, because it may have no end.
    """
    if isinstance(returned, _NO_SEQUENCES):
        return None
    shape = getattr(returned, "shape", None)  # NumPy, torch, pandas
    row = isinstance(shape, tuple) and len(shape) == 1
    if row or isinstance(returned, Sequence | Iterator):
        return list(islice(returned, most))
    return None


def _number(value: Any) -> float | None:
    """A real number as such; None for anything else, strings that spell one included."""
    if getattr(value, "shape", None) == () and callable(item := getattr(value, "item", None)):
        if isinstance(value, np.generic | np.ndarray) and value.dtype.kind not in "biufO":
            return None  # dates have numbers inside
        if value is np.ma.masked:
            return None  # its item is 0
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

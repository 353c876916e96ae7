"""Calls of a user's function: its deadline, its retries, and what it may return.

This is a border with foreign code. Whatever the function raises is a failure of the sequences that
it was called on, with the reason; nothing that it raises, returns or changes ends the worker.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from workers.caught import Caught
from workers.pulse import beat
from workers.user_code import kind_of, place_of, words_of
from workers.user_signature import Arguments, Bound

_log = logging.getLogger(__name__)

_LATE_IN_A_ROW = 2  # then the rest of the sequences counts as late, too
_ROUND = 2  # deadlines that one round takes at most: for all at once, and for one after the other
_BEAT_SECONDS = 1.0
_LARGEST = float(np.finfo(np.float32).max)  # beyond it a number turns infinite on its way
_NO_SEQUENCES = (str, bytes, bytearray, memoryview)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a function may take, and how often it is asked again."""

    seconds: float = 0.0  # for one call; 0 = as long as it likes
    retries: int = 0  # of the sequences that failed

    @property
    def most_seconds(self) -> float:
        """How long a batch can take in all; 0 = no limit."""
        return _ROUND * self.seconds * (1 + self.retries)


@dataclass(frozen=True, slots=True)
class Reply:
    """The number for one sequence, or why there is none."""

    value: float  # NaN where failed
    reason: str = ""  # of a bounded set, so that failures can be counted by it; "" = well
    words: str = ""  # what the function's own error says


@dataclass(frozen=True, slots=True)
class Caller:
    """How to call one function on any number of items.

    Attributes:
        name: What the function is called in reasons, e.g. "reward function".
        function: Gets lists made by `arguments`.
        arguments: Makes new lists at each call, so a function that changes them changes nothing.
        lowest: The smallest number that it may return.
        highest: The largest one.
    """

    name: str
    function: Bound
    arguments: Callable[[Sequence[Any]], Arguments]
    lowest: float = -_LARGEST
    highest: float = _LARGEST

    def ask(self, items: Sequence[Any], patience: Patience = Patience()) -> list[Reply]:
        """Call the function on all items; where that raises or is late, on one after the other.

        So one item that the function cannot stomach fails alone. A result of the wrong length or
        form says nothing about any item: all fail. What failed is asked again, as a batch of its
        own. A late call goes on in a thread of its own, and its answer is not used.

        Returns:
            A reply an item, in order.
        """
        replies = self._round(items, patience.seconds)
        for _ in range(patience.retries):
            failed = [n for n, reply in enumerate(replies) if reply.reason]
            if not failed:
                break
            again = self._round([items[n] for n in failed], patience.seconds)
            for n, reply in zip(failed, again, strict=True):
                replies[n] = reply
        return replies

    def _round(self, items: Sequence[Any], seconds: float) -> list[Reply]:
        replies = self._call(items, seconds)
        if not isinstance(replies, Reply):
            return replies
        if len(items) == 1:
            return [replies]
        return self._one_by_one(items, seconds)

    def _one_by_one(self, items: Sequence[Any], seconds: float) -> list[Reply]:
        """Each item alone, all within one deadline."""
        until = time.monotonic() + seconds
        late, found, in_a_row = self._late(), list[Reply](), 0
        for item in items:
            left = min(until - time.monotonic(), seconds / _LATE_IN_A_ROW)
            if seconds and (in_a_row == _LATE_IN_A_ROW or left <= 0):
                found.append(late)
                continue
            replies = self._call([item], left if seconds else 0.0)
            reply = replies if isinstance(replies, Reply) else replies[0]
            in_a_row = in_a_row + 1 if reply == late else 0
            found.append(reply)
        return found

    def _late(self) -> Reply:
        return Reply(math.nan, f"{self.name} did not answer in time")

    def _call(self, items: Sequence[Any], seconds: float) -> list[Reply] | Reply:
        """A reply an item; or one for all, where the call raised or was late."""
        replies: list[Reply] = []

        def run() -> None:
            result = self.function(self.arguments(items))
            # An iterator runs user code, and may have no end. What it returned is looked at here,
            # because its own classes may raise then, too.
            if isinstance(result, Iterator):
                result = list(islice(result, len(items) + 1))
            replies.extend(self._checked(result, len(items)))

        caught = _finished(run, seconds)
        if caught is None:
            _log.warning("the %s was late on %d items", self.name, len(items))
            return self._late()
        if caught.error is not None:
            error = caught.error
            place, words = place_of(error), words_of(error)
            _log.warning("%s on %d items: %s: %s", self.name, len(items), kind_of(error), words)
            at = f" at {place}" if place else ""
            return Reply(math.nan, f"{self.name} raised {kind_of(error)}{at}", words)
        return replies

    def _checked(self, returned: Any, wanted: int) -> list[Reply]:
        values = _values(returned)
        if values is None:
            reason = f"{self.name} returned {_form(returned)}, not a list of numbers"
            return [Reply(math.nan, reason)] * wanted
        if len(values) != wanted:
            reason = f"{self.name} returned the wrong number of values"
            said = f"{len(values)} for {wanted}, in the last call"
            return [Reply(math.nan, reason, said)] * wanted
        return [self._number(value) for value in values]

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


def _finished(run: Callable[[], None], seconds: float) -> Caught | None:
    """Run it in a thread; what it raised, or None if it has not come back within the deadline.

    Python cannot end a thread: a late one stays behind, and ends with the process at the latest. A
    thread, and no call, because code of others may raise anything: only here is it certain that
    SystemExit or KeyboardInterrupt come from that code and are not meant for this process.
    """
    caught = Caught(BaseException)

    def guarded() -> None:
        with caught:
            run()

    folder = _working_folder()
    thread = threading.Thread(target=guarded, name="user function", daemon=True)
    thread.start()
    until = time.monotonic() + seconds
    while thread.is_alive() and (not seconds or time.monotonic() < until):
        thread.join(min(until - time.monotonic(), _BEAT_SECONDS) if seconds else _BEAT_SECONDS)
        if seconds:
            beat()  # this deadline stands in for the signs of progress that passes of a model give
    if folder and _working_folder() != folder:
        with suppress(OSError):  # it may have been removed
            os.chdir(folder)  # relative paths of this process mean what they meant before
    return None if thread.is_alive() else caught


def _working_folder() -> str:
    """The working folder of this process; "" if it has been removed."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""


def _values(returned: Any) -> Sequence[Any] | None:
    """What was returned as a sequence; None if its form does not say which value is whose."""
    if isinstance(returned, _NO_SEQUENCES):
        return None
    if isinstance(returned, Sequence):
        return returned
    shape = getattr(returned, "shape", None)  # NumPy, torch, pandas
    if isinstance(shape, tuple) and len(shape) == 1:
        return list(returned)
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
    name = type(value).__name__
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"a {name} of shape {tuple(shape)}"
    return "nothing (None)" if value is None else f"a {name}"

"""Calls of a user's function on many items: its deadline, and how often it is asked again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workers.user_functions.answers import Outcome, Reply
from workers.user_functions.signature import Arguments

_LOST_IN_A_ROW = 2  # then the rest of the sequences counts as lost, too
_ROUND = 2  # deadlines that one round takes at most: for all at once, and for one after the other
_START_SECONDS = 30.0  # of a round, besides, in which the function's process is started again


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a function may take, and how often it is asked again."""

    seconds: float = 0.0  # for one call; 0 = as long as it likes
    retries: int = 0  # of the sequences that failed

    @property
    def most_seconds(self) -> float:
        """How long a batch can take in all; 0 = no limit."""
        round_seconds = _ROUND * self.seconds + _START_SECONDS if self.seconds else 0.0
        return round_seconds * (1 + self.retries)


@dataclass(frozen=True, slots=True)
class Caller:
    """How to call one function on any number of items.

    Attributes:
        name: What the function is called in reasons, e.g. "reward function".
        arguments: Makes new lists at each call, so a function that changes them changes nothing.
        call: Gets such lists, their length, and the seconds of the deadline (0 = none).
        prepare: Starts what `call` needs; gets the seconds that this may take, says what it took.
    """

    name: str
    arguments: Callable[[Sequence[Any]], Arguments]
    call: Callable[[Arguments, int, float], Outcome]
    prepare: Callable[[float], float] = lambda _: 0.0

    def ask(self, items: Sequence[Any], patience: Patience = Patience()) -> list[Reply]:
        """Call the function on all items; where that raises or is late, on one after the other.

        So one item that the function cannot stomach fails alone. A result of the wrong length or
        form says nothing about any item: all fail. What failed is asked again, as a batch of its
        own. A call that is late, or that ends its process, loses the state of the function.

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
        starting = _START_SECONDS if seconds else math.inf
        starting -= self.prepare(starting)
        replies = self._call(items, seconds)
        if not isinstance(replies, Reply):
            return replies
        if len(items) == 1:
            return [replies]
        return self._one_by_one(items, seconds, starting)

    def _one_by_one(self, items: Sequence[Any], seconds: float, starting: float) -> list[Reply]:
        """Each item alone, all within one deadline, and so many seconds more for starts."""
        until = time.monotonic() + seconds
        found, in_a_row = list[Reply](), 0
        for item in items:
            if in_a_row == _LOST_IN_A_ROW:
                found.append(found[-1])
                continue
            took = self.prepare(max(starting, 0.0))
            starting, until = starting - took, until + took
            left = min(until - time.monotonic(), seconds / _LOST_IN_A_ROW)
            if seconds and left <= 0:
                found.append(late(self.name))
                continue
            replies = self._call([item], left if seconds else 0.0)
            reply = replies if isinstance(replies, Reply) else replies[0]
            in_a_row = in_a_row + 1 if reply.lost else 0
            found.append(reply)
        return found

    def _call(self, items: Sequence[Any], seconds: float) -> Outcome:
        return self.call(self.arguments(items), len(items), seconds)


def late(name: str) -> Reply:
    """The reply for what a function was not done with at its deadline."""
    return Reply(math.nan, f"{name} did not answer in time", lost=True)

"""Calls of a user's function on many items, with timeout, retries and one-by-one fallback."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from workers.user_functions.answers import Outcome, Reply
from workers.user_functions.signature import Arguments

_LOST_IN_A_ROW = 2  # after this many lost calls, all further sequences count as lost too
_ROUND = 2  # timeouts per round at most: one for all items at once, one for item by item
_START_SECONDS = 30.0  # additional time per round for restarts of the function's process


@dataclass(frozen=True, slots=True)
class Patience:
    """Timeout and retries of a user's function."""

    seconds: float = 0.0  # timeout per call; 0 = none
    retries: int = 0  # retries of the sequences that failed

    @property
    def most_seconds(self) -> float:
        """Longest time that a batch can take; 0 = no limit."""
        round_seconds = _ROUND * self.seconds + _START_SECONDS if self.seconds else 0.0
        return round_seconds * (1 + self.retries)


@dataclass(frozen=True, slots=True)
class Caller:
    """How to call one function on any number of items.

    Attributes:
        name: Name of the function in failure reasons, e.g. "reward function".
        arguments: Builds new lists for each call, so that a function may change them.
        call: Gets these lists, their length, and the timeout in seconds (0 = none).
        prepare: Starts what `call` needs; gets a time limit in seconds, returns the time used.
        sizes: How many numbers the function owes for each item. Where it is more than one, the
            reply for an item has them as its `steps`; None = one number each.
    """

    name: str
    arguments: Callable[[Sequence[Any]], Arguments]
    call: Callable[[Arguments, int, float], Outcome]
    prepare: Callable[[float], float] = lambda _: 0.0
    sizes: Callable[[Sequence[Any]], Sequence[int]] | None = None

    def ask(self, items: Sequence[Any], patience: Patience = Patience()) -> list[Reply]:
        """Call the function on all items; if that raises or is late, on each item separately.

        So one item that makes the function fail does not fail the others. A result of the wrong
        length or form cannot be assigned to items: all fail. Failed items are retried together in a
        new batch. A call that is late or ends its process loses the function's state.

        Returns:
            One reply per item, in order.
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
        """Call each item alone, all within `seconds` plus `starting` seconds for restarts."""
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
        arguments = self.arguments(items)
        if self.sizes is None:
            return self.call(arguments, len(items), seconds)
        sizes = self.sizes(items)
        found = self.call(arguments, sum(sizes), seconds)
        return found if isinstance(found, Reply) else _joined(found, sizes)


def _joined(replies: Sequence[Reply], sizes: Sequence[int]) -> list[Reply]:
    """One reply per item, with its numbers as steps; one number without a value fails its item."""
    left, found = iter(replies), list[Reply]()
    for size in sizes:
        own = list(islice(left, size))
        bad = next((reply for reply in own if reply.reason), None)
        numbers = tuple(reply.value for reply in own)
        found.append(bad or Reply(math.fsum(numbers), steps=numbers))
    return found


def late(name: str) -> Reply:
    """The reply for an item that timed out."""
    return Reply(math.nan, f"{name} did not answer in time", lost=True)

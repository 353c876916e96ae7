"""Timing of each call in a role's process: begin, end and time spent on transfer.

The record returns with the result of the call that it describes, so it needs no extra message.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workers.process.resident import peak_resident

Clock = Callable[[], float]

#: Methods that move weights; all of their time is transfer.
MOVING = frozenset({"publish_weights", "send_weights", "receive_weights"})


@dataclass(frozen=True, slots=True)
class CallSpan:
    """One call, in seconds of the monotonic clock of the machine that ran it."""

    verb: str
    begin: float
    end: float
    transfer: float  # seconds spent fetching records of other roles, or moving weights
    clock: str  # name of the machine's clock; times under one name are directly comparable
    peak: int = field(default=0, compare=False)  # most resident bytes since the previous reply


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of a call, and the spans that its process recorded since the previous reply.

    The last span is that of the call, and has the peak memory of the process. Before it come spans
    of calls that send no reply, and the spans so far of streams that run at the same time.
    """

    value: Any
    spans: tuple[CallSpan, ...]


@functools.cache
def clock_name() -> str:
    """The boot id: processes with the same name read the same monotonic clock."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class _Current(threading.local):
    transfer = 0.0


class _Log:
    """Spans of this process that are not yet sent with a reply."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[CallSpan] = []
        self._streams: dict[int, tuple[str, float]] = {}  # thread -> method, begin of its span

    def stream(self, name: str, since: float) -> None:
        """Record that a stream of this thread is running."""
        with self._lock:
            self._streams[threading.get_ident()] = (name, since)

    def rest(self, now: float) -> None:
        """Record that this thread's stream waits or has ended; the next reply gets its span."""
        with self._lock:
            name, since = self._streams.pop(threading.get_ident())
            self._waiting.append(CallSpan(name, since, now, 0.0, clock_name()))

    def reply(self, value: Any, now: float, own: CallSpan | None = None) -> Reply:
        """Build a reply with all unsent spans; the spans of running streams are split at `now`."""
        with self._lock:
            for thread, (name, since) in self._streams.items():
                self._waiting.append(CallSpan(name, since, now, 0.0, clock_name()))
                self._streams[thread] = (name, now)
            spans, self._waiting = self._waiting, []
        if own is not None:
            spans.append(own)
        if spans:
            spans[-1] = replace(spans[-1], peak=peak_resident())
        return Reply(value, tuple(spans))


_current = _Current()
_log = _Log()


@contextmanager
def fetching(now: Clock = time.monotonic) -> Iterator[None]:
    """Count the time of the `with` block as transfer of the current call."""
    began = now()
    try:
        yield
    finally:
        _current.transfer += now() - began


def timed(
    work: Callable[[], Any], verb: str, *, results: int = 1, now: Clock = time.monotonic
) -> Any:
    """Run a call; its result becomes a `Reply`.

    Args:
        work: Runs it.
        verb: The method that it runs.
        results: How many objects it returns; of several, only the last becomes a reply.
        now: The clock, seconds.
    """
    _current.transfer = 0.0
    begin = now()
    value = work()
    end = now()
    transfer = end - begin if verb in MOVING else _current.transfer
    own = CallSpan(verb, begin, end, transfer, clock_name())
    if results == 1:
        return _log.reply(value, end, own)
    return (*value[:-1], _log.reply(value[-1], end, own))


def timed_stream(items: Iterator[Any], verb: str, now: Clock = time.monotonic) -> Iterator[Any]:
    """Run a call that yields large and small records in turn; the small ones become replies."""
    for number in itertools.count():
        _log.stream(verb, now())
        try:
            item = next(items, _END)
        finally:
            _log.rest(now())
        if item is _END:
            return
        yield _log.reply(item, now()) if number % 2 else item


_END = object()

"""Timing of each call in a role's process: begin, end and time spent on transfer.

The record returns with the result of the call that it describes, so it needs no extra message.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)
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


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of a call, and the spans that its process recorded since the previous reply.

    The last span is that of the call. Before it come spans of calls that send no reply, and the
    spans so far of streams that run at the same time.
    """

    value: Any
    spans: tuple[CallSpan, ...]


@functools.cache
def clock_name() -> str:
    """The boot id: processes with the same name read the same monotonic clock."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class _Current(threading.local):
    inside = False
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
        return Reply(value, (*spans, own) if own is not None else tuple(spans))


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


def timed(verb: Callable[..., Any], *, results: int = 1, now: Clock = time.monotonic) -> Any:
    """Wrap a method to return a `Reply`; when another wrapped method calls it, its plain result.

    For a generator that yields large and small records in turn, the small ones become replies.

    Args:
        verb: The method.
        results: How many objects it returns; of several, only the last becomes a reply.
        now: The clock, seconds.
    """
    if inspect.isgeneratorfunction(verb):

        @functools.wraps(verb)
        def stream(*args: Any, **kwargs: Any) -> Any:
            # Must be a generator function: Ray checks the kind of the method before calling it.
            yield from _stream(verb(*args, **kwargs), verb.__name__, now)

        return stream

    @functools.wraps(verb)
    def call(*args: Any, **kwargs: Any) -> Any:
        # Ray pickles this closure, so it must not hold per-process state such as `_log`.
        return _call(functools.partial(verb, *args, **kwargs), verb.__name__, results, now)

    return call


def _call(verb: Callable[[], Any], name: str, results: int, now: Clock) -> Any:
    if _current.inside:
        return verb()
    _current.inside, _current.transfer = True, 0.0
    begin = now()
    try:
        value = verb()
    finally:
        _current.inside = False
    end = now()
    transfer = end - begin if name in MOVING else _current.transfer
    own = CallSpan(name, begin, end, transfer, clock_name())
    if results == 1:
        return _log.reply(value, end, own)
    return (*value[:-1], _log.reply(value[-1], end, own))


def _stream(items: Iterator[Any], name: str, now: Clock) -> Iterator[Any]:
    if _current.inside:
        yield from items
        return
    for number in itertools.count():
        _current.inside = True
        _log.stream(name, now())
        try:
            item = next(items, _END)
        finally:
            _current.inside = False
            _log.rest(now())
        if item is _END:
            return
        yield _log.reply(item, now()) if number % 2 else item


_END = object()


def timed_verbs(results: Callable[[Callable[..., Any]], int]) -> Callable[[Class], Class]:
    """Class decorator: every public method, inherited ones too, returns a `Reply`.

    Methods without a result are unchanged: nobody would read the spans in their reply.

    Args:
        results: Returns how many objects a method returns.
    """

    def decorate(cls: Class) -> Class:
        for name in dir(cls):
            verb = getattr(cls, name)
            if not name.startswith("_") and callable(verb) and (count := results(verb)):
                setattr(cls, name, timed(verb, results=count))
        return cls

    return decorate

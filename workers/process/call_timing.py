"""What a role's process writes down about each of its calls: when it ran, and what it waited for.

The record travels back with the answer of the call that it describes, so an account of time costs
no message of its own.
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

#: Verbs that move weights; all of their time is transfer.
MOVING = frozenset({"publish_weights", "send_weights", "receive_weights"})


@dataclass(frozen=True, slots=True)
class CallSpan:
    """One call, in seconds of the monotonic clock of the machine that ran it."""

    verb: str
    begin: float
    end: float
    transfer: float  # seconds that it fetched records of other roles, or moved weights
    clock: str  # names the machine's clock: equal names need no correction


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer of a call, and what its process has done since the answer before.

    The call's own span is the last. Before it come those that had no answer to travel with, and
    what streams have done so far that run beside this call.
    """

    value: Any
    spans: tuple[CallSpan, ...]


@functools.cache
def clock_name() -> str:
    """Processes with the same name read the same monotonic clock; it starts with the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class _Current(threading.local):
    inside = False
    transfer = 0.0


class _Log:
    """Spans of this process that wait for an answer to travel with."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[CallSpan] = []
        self._streams: dict[int, tuple[str, float]] = {}  # thread -> verb, and since when

    def stream(self, name: str, since: float) -> None:
        """A stream of this thread is at work."""
        with self._lock:
            self._streams[threading.get_ident()] = (name, since)

    def rest(self, now: float) -> None:
        """It waits, or has ended; what it did since its last answer waits for another one."""
        with self._lock:
            name, since = self._streams.pop(threading.get_ident())
            self._waiting.append(CallSpan(name, since, now, 0.0, clock_name()))

    def reply(self, value: Any, now: float, own: CallSpan | None = None) -> Reply:
        """An answer with all that waits; a running stream is cut here, and told up to now."""
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
    """Count what runs inside as transfer of the current call."""
    began = now()
    try:
        yield
    finally:
        _current.transfer += now() - began


def timed(verb: Callable[..., Any], *, results: int = 1, now: Clock = time.monotonic) -> Any:
    """A verb that answers with a `Reply`; one verb calling another gets the plain answer.

    A verb that yields large and small records in turn replies with the small ones.

    Args:
        verb: The method.
        results: How many objects it returns; of several, the last is replied and the others stay
            as they are.
        now: The clock, seconds.
    """
    if inspect.isgeneratorfunction(verb):

        @functools.wraps(verb)
        def stream(*args: Any, **kwargs: Any) -> Any:
            # A generator function itself: Ray looks at what the verb is before it calls it.
            yield from _stream(verb(*args, **kwargs), verb.__name__, now)

        return stream

    @functools.wraps(verb)
    def call(*args: Any, **kwargs: Any) -> Any:
        # Ray sends this closure to the role's process: all that is of one process stays outside.
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
    """Class decorator: every public method, inherited ones too, answers with a `Reply`.

    Those that return nothing stay as they are: what waits would travel with an answer to nobody.

    Args:
        results: How many objects a method returns.
    """

    def decorate(cls: Class) -> Class:
        for name in dir(cls):
            verb = getattr(cls, name)
            if not name.startswith("_") and callable(verb) and (count := results(verb)):
                setattr(cls, name, timed(verb, results=count))
        return cls

    return decorate

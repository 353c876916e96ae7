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
    """The answer of a call and its span."""

    value: Any
    span: CallSpan


@functools.cache
def clock_name() -> str:
    """Processes with the same name read the same monotonic clock; it starts with the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class _Current(threading.local):
    inside = False
    transfer = 0.0


_current = _Current()


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

    A verb that yields small and large records in turn replies with the small ones, each with the
    time since the large one before it.

    Args:
        verb: The method.
        results: How many objects it returns; of several, the last is replied and the others stay
            as they are.
        now: The clock, seconds.
    """
    if inspect.isgeneratorfunction(verb):

        @functools.wraps(verb)
        def stream(*args: Any, **kwargs: Any) -> Any:
            return _stream(verb(*args, **kwargs), verb.__name__, now)

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
    span = CallSpan(name, begin, end, transfer, clock_name())
    if results == 1:
        return Reply(value, span)
    return (*value[:-1], Reply(value[-1], span))


def _stream(items: Iterator[Any], name: str, now: Clock) -> Iterator[Any]:
    if _current.inside:
        yield from items
        return
    begin = now()
    for number in itertools.count():
        _current.inside = True
        try:
            item = next(items, _END)
        finally:
            _current.inside = False
        if item is _END:
            return
        if number % 2 == 0:
            yield Reply(item, CallSpan(name, begin, now(), 0.0, clock_name()))
        else:
            yield item
            begin = now()


_END = object()


def timed_verbs(results: Callable[[Callable[..., Any]], int]) -> Callable[[Class], Class]:
    """Class decorator: every public method, inherited ones too, answers with a `Reply`.

    Args:
        results: How many objects a method returns.
    """

    def decorate(cls: Class) -> Class:
        for name in dir(cls):
            verb = getattr(cls, name)
            if not name.startswith("_") and callable(verb):
                setattr(cls, name, timed(verb, results=results(verb)))
        return cls

    return decorate

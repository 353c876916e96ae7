"""Heartbeats of a worker's process: signs of progress of the running method.

A thread that answers proves only that the process runs, not that its work advances. Therefore the
work itself beats: at every forward pass and every engine step. `pulse` returns the time since the
last beat.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_SPANS = 5


@dataclass(frozen=True, slots=True)
class Pulse:
    """Progress of a process at one moment."""

    verb: str  # running method; "" = idle
    beats: int  # since the process began
    quiet_seconds: float  # since the last beat, or since the method began if it has had none
    spans: tuple[str, ...]  # the last finished methods, with their seconds

    def __str__(self) -> str:
        now = f"{self.verb}, without progress for {self.quiet_seconds:.1f} s" if self.verb else ""
        before = f"before: {', '.join(self.spans)}" if self.spans else ""
        return f"{'; '.join(part for part in (now or 'idle', before) if part)} ({self.beats} beats)"


class _Heart:
    def __init__(self) -> None:
        self.verb = ""
        self.beats = 0
        self.last = time.monotonic()
        self.spans: deque[str] = deque(maxlen=_SPANS)


_heart = _Heart()  # one worker per process


def beat() -> None:
    """Record one pass or step of progress of this process."""
    _heart.beats += 1
    _heart.last = time.monotonic()


def pulse() -> Pulse:
    """The progress of this process; may be called from any thread."""
    quiet = time.monotonic() - _heart.last
    return Pulse(_heart.verb, _heart.beats, quiet, tuple(_heart.spans))


@contextmanager
def shown(verb: str) -> Iterator[None]:
    """Have `pulse` show a method while it runs, in the `with` block."""
    began = _heart.last = time.monotonic()
    _heart.verb = verb
    try:
        yield
    finally:
        _heart.verb = ""
        _heart.spans.append(f"{verb} {time.monotonic() - began:.2f} s")


def stacks() -> str:
    """Stack of every other thread of this process, innermost call last."""
    names = {t.ident: t.name for t in threading.enumerate()}
    own = threading.get_ident()
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != own
    )

"""End a run whose main thread cannot end it, because it is inside Ray's native code.

Such a call may return late or never, and neither an exception nor a signal handler reaches the
thread before that. Another thread then does the remaining steps, each with its own time limit, and
ends the process.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from orchestrator.process.command_exit import say, tell
from workers.errors import RehearsalError
from workers.process.caught_errors import Caught

_STEP_SECONDS = 6.0
LEAVING = "leave Ray"  # name of the thread that disconnects


class LastResort:
    """The steps to take before the process ends."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], object]] = []  # run in reverse order
        self.report: Callable[[RehearsalError], object] = lambda error: say(f"error: {error}\n")
        self._lock = threading.Lock()

    def fail(self, error: RehearsalError) -> NoReturn:
        """End the process with an error, from any thread but the main one."""
        error.add_note(f"the main thread was here:\n{_main_stack()}")
        self.end(error.exit_code, lambda: self.report(error))

    def stand_aside(self) -> None:
        """Called before the main thread reports its end: waits if another thread is doing so."""
        if not self._lock.acquire(blocking=False):
            threading.Event().wait(self._longest)

    def end(self, code: int, last: Callable[[], object]) -> NoReturn:
        """Run the steps and the final one, and end the process with this exit code."""
        # never released: the first reason counts, and its thread ends the process in time
        if self._lock.acquire(timeout=self._longest):
            for step in (*reversed(self.steps), last, lambda: tell("")):
                within(_STEP_SECONDS, step)
        os._exit(code)

    @property
    def _longest(self) -> float:
        """Seconds that `end` may take."""
        return _STEP_SECONDS * (len(self.steps) + 3)


def within(seconds: float, step: Callable[[], object]) -> bool:
    """Call something that may hang or raise; returns whether it ended in time."""

    def contained() -> None:
        with Caught(Exception):  # the process ends for another reason, which is reported
            step()

    thread = threading.Thread(target=contained, name="last resort", daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def _main_stack() -> str:
    ident = threading.main_thread().ident
    frame = sys._current_frames().get(ident) if ident is not None else None
    return "".join(traceback.format_stack(frame)) if frame is not None else "(not known)"

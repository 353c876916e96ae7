"""Run code that may never end on many items, on a thread with limits on time and memory.

Signals would need the main thread, and a process per data set would take seconds to start.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import psutil

from workers.process.caught_errors import Caught

SECONDS = 2.0  # most CPU time per item; waiting and suspension do not count
BYTES = 2 << 30  # most growth of the process's memory during one item
_LOOK_SECONDS = 0.05

Item = TypeVar("Item")
Result = TypeVar("Result")


class ItemTooCostlyError(Exception):
    """An item took too long, or too much memory."""

    def __init__(self, what: str, place: int) -> None:
        super().__init__(what)
        self.what = what
        self.place = place  # index of the item


class _Stop(BaseException):
    """Ends the watched thread; passes through `except Exception`."""


class _Work(Generic[Item, Result]):
    def __init__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self.results: list[Result] = []
        self.began = 0.0  # CPU seconds of the thread at the start of the current item
        self.clock = -1
        self.done = threading.Event()
        self.caught = Caught(BaseException)
        self._function, self._items = function, items

    def __call__(self) -> None:
        try:
            with self.caught:
                clock = time.pthread_getcpuclockid(threading.get_ident())
                self.began, self.clock = time.clock_gettime(clock), clock
                for item in self._items:
                    self.began = time.clock_gettime(clock)
                    self.results.append(self._function(item))
        finally:
            self.done.set()


def _used(work: _Work[Any, Any]) -> float:
    """CPU seconds spent on the current item; 0 before the thread starts and after it ends."""
    if work.clock == -1 or work.done.is_set():
        return 0.0
    try:
        return time.clock_gettime(work.clock) - work.began
    except OSError:  # the thread has ended since, and its clock with it
        return 0.0


def watched(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    seconds: float = SECONDS,
    most_bytes: int = BYTES,
) -> list[Result]:
    """Call `function` on each item and return the results in order.

    Errors of `function` are raised here, too.

    Raises:
        ItemTooCostlyError: An item took over `seconds` of CPU time, or the process grew by over
            `most_bytes` during it.
    """
    work = _Work(function, items)
    thread = threading.Thread(target=work, name="watched", daemon=True)
    thread.start()
    process, size, place = psutil.Process(), 0, -1
    while not work.done.wait(_LOOK_SECONDS):
        now = len(work.results)
        if now != place:
            place, size = now, process.memory_info().rss
        used = _used(work)
        grown = process.memory_info().rss - size
        if used > seconds or grown > most_bytes:
            _end(thread, work.done)
            what = f"over {seconds:g} s" if used > seconds else f"over {most_bytes / 2**30:g} GiB"
            raise ItemTooCostlyError(what, place)
    thread.join()
    if work.caught.error is not None:
        raise work.caught.error
    return work.results


def _end(thread: threading.Thread, done: threading.Event) -> None:
    assert thread.ident is not None, "it was started"
    for _ in range(20):  # the code may catch it, and it takes effect only after a long C call
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(_Stop)
        )
        if done.wait(0.1):
            return

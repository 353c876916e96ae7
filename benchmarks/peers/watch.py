"""Processor time and memory of a process with all its descendants, watched from outside."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

CPU_EVERY, MEMORY_EVERY = 0.1, 2.0  # seconds; a look at memory costs milliseconds per process


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at a tree of processes."""

    at: float  # seconds of the monotonic clock
    cpu: float  # seconds of user and system, of processes that have ended too


class Watch:
    """Looks at a tree of processes until it ends."""

    def __init__(self, pid: int, also: Callable[[], None] = lambda: None) -> None:
        """Watch a process.

        Args:
            pid: The root of the tree.
            also: Called at each look.
        """
        self.samples: list[Sample] = []
        self.peak_bytes = 0  # proportional set size of the whole tree
        self._pid, self._also = pid, also
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join(10)

    def _look(self) -> None:
        looked = 0.0
        while not self._over.wait(CPU_EVERY):
            pids = tree(self._pid)
            if not pids:
                return
            self.samples.append(Sample(time.monotonic(), sum(map(cpu_seconds, pids))))
            self._also()
            if time.monotonic() - looked > MEMORY_EVERY:
                self.peak_bytes = max(self.peak_bytes, sum(map(proportional_bytes, pids)))
                looked = time.monotonic()


def tree(pid: int) -> list[int]:
    """The process and its descendants; empty once it has ended."""
    try:
        root = psutil.Process(pid)
        return [pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of its children that were waited for."""
    try:
        return sum(psutil.Process(pid).cpu_times()[:4])
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0


def proportional_bytes(pid: int) -> int:
    """Memory of a process, where pages of several processes count in parts."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) << 10 if found else 0

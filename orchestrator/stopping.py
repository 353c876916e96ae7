"""How a run is asked to stop: signals, and the time it gets to reach a step boundary."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Those that batch systems and terminals send before they end a job: systemd, Kubernetes and scancel
# (SIGTERM), a terminal that closes (SIGHUP), Slurm's --signal (SIGUSR1 or SIGUSR2 by custom).
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})


class StopRequest:
    """Whether the run has been asked to save itself and end at the next step boundary."""

    def __init__(self) -> None:
        self.grace_seconds = 0.0  # 0: a signal ends the run at once
        self.caught: signal.Signals | None = None  # the first signal
        self._timer: threading.Timer | None = None
        self._unwinding = False
        self._late = False
        self._closed = False

        self.requested = False  # True from the first signal on

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler.

        `STOP_SIGNALS` give the run its grace to save itself. Without grace, when it is over, and on
        SIGINT, the run unwinds by KeyboardInterrupt: no other exception gets out of a wait inside
        Ray, whose native code drops them. SIGINT ends a run that saves itself without waiting for
        that, and a second SIGINT ends the process at once; Ray's processes of a local cluster
        follow, since the kernel tells them. Other signals have no effect once the run stops.
        """
        del frame
        if self._late and not self._unwinding:
            self._late = False
            if self._closed:  # the timer fired while it was being cancelled
                return
            self._unwinding = True
            raise KeyboardInterrupt
        may_save = number in STOP_SIGNALS
        if may_save and self.requested:  # batch systems send several, or one to each of many
            return
        if self._unwinding:
            os._exit(128 + number)
        self.caught, self.requested = signal.Signals(number), True
        if may_save and self._closed:
            return
        if may_save and self.grace_seconds > 0:
            self._timer = threading.Timer(self.grace_seconds, self._expire)
            self._timer.daemon = True
            self._timer.start()
            return
        self._unwinding = True
        raise KeyboardInterrupt

    def _expire(self) -> None:
        if self._closed:
            return
        self._late = True
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGTERM)  # wakes it from a system call, unlike a flag

    def close(self) -> None:
        """Forget the time limit: everything is saved, and the teardown takes what it takes."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Handle SIGINT and `STOP_SIGNALS` by a StopRequest until the block ends.

    SIGHUP stays ignored where it is: nohup asks for that.
    """
    stop = StopRequest()
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, *STOP_SIGNALS)}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]
    for each in before:
        signal.signal(each, stop.handle)
    try:
        yield stop
    finally:
        stop.close()
        for each, handler in before.items():
            signal.signal(each, handler)

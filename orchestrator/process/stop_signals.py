"""How a run is asked to stop: signals, and the time it gets to reach a step boundary."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from orchestrator.process.command_exit import say, tell
from orchestrator.process.forced_exit import LEAVING, LastResort, within

# Those that batch systems and terminals send before they end a job: systemd, Kubernetes and scancel
# (SIGTERM), a terminal that closes (SIGHUP), Slurm's --signal (SIGUSR1 or SIGUSR2 by custom).
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})
_NOTICE_SECONDS = 5.0  # time for the main thread to notice that its grace is over
_TEARDOWN_SECONDS = 60.0  # each of its parts has a shorter deadline
_FLUSH_SECONDS = 6.0
_EXIT_SECONDS = 60  # until SIGALRM ends an interpreter that hangs at its end


@contextmanager
def shielded(*more: signal.Signals) -> Iterator[None]:
    """Block stop signals, and `more`, in processes and threads started within the context."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | set(more))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopRequest:
    """Whether the run has been asked to save itself and end at the next step boundary."""

    def __init__(self) -> None:
        self.resort = LastResort()
        self.grace_seconds = 0.0  # 0: a signal ends the run at once
        self.caught: signal.Signals | None = None  # the first signal
        self.until = 0.0  # time.monotonic() at which its grace is over
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
        follow, since the kernel tells them. Other signals have no effect once the run stops. Where
        the main thread does not get here, `escort` ends the process.
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
        self.until = time.monotonic() + (self.grace_seconds if may_save else 0.0)
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

    def escort(self, number: int, over: threading.Event) -> None:
        """Ensure from another thread that the process ends: the main thread may be stuck.

        Args:
            number: The first signal, as the operating system told it.
            over: Set when the run has ended by itself.
        """
        grace = self.grace_seconds if number in STOP_SIGNALS else 0.0
        if over.wait(grace + _NOTICE_SECONDS):
            return
        if (self._unwinding or self._closed) and over.wait(_TEARDOWN_SECONDS):
            return
        text = f"stopped by {signal.Signals(number).name}; the main thread did not answer\n"
        self.resort.end(128 + number, lambda: say(text))

    def close(self) -> None:
        """Cancel the time limit: everything is saved, and shutdown may take longer."""
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
    over = threading.Event()
    listening, telling = socket.socketpair()
    telling.setblocking(False)
    listener = threading.Thread(target=_listen, args=(listening, stop, over), daemon=True)
    # signals are for the main thread, which blocks them while it must not be disturbed
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    listener.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    wakeup = signal.set_wakeup_fd(telling.fileno(), warn_on_full_buffer=False)
    try:
        yield stop
    finally:
        over.set()
        stop.close()
        for each, handler in before.items():
            signal.signal(each, handler)
        signal.set_wakeup_fd(wakeup)
        telling.close()
        listener.join()
        listening.close()


def _listen(line: socket.socket, stop: StopRequest, over: threading.Event) -> None:
    """Handle signals as soon as they arrive, whatever the main thread does."""
    while told := line.recv(1):
        if told[0] in (signal.SIGINT, *STOP_SIGNALS):
            stop.escort(told[0], over)


def exit_process(code: int) -> NoReturn:
    """End the process; at once where a thread is still inside Ray, whose destructors would crash.

    The exit code stands, whatever signals are still sent: batch systems send several.

    Raises:
        SystemExit: in the usual case.
    """
    for each in (signal.SIGINT, *STOP_SIGNALS):
        signal.signal(each, signal.SIG_IGN)
    signal.alarm(_EXIT_SECONDS)
    if any(thread.name == LEAVING for thread in threading.enumerate()):
        within(_FLUSH_SECONDS, lambda: tell(""))
        os._exit(code)
    sys.exit(code)


# Signals of processes that are forked from this one are no signals to this one.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))

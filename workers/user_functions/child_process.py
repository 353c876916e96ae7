"""A user's function in a process of its own, seen from the process that calls it.

A thread cannot be ended, and a function that holds Python's lock (a regular expression that
backtracks without end, code in C) would hold up all threads here. So it runs elsewhere: the process
stays between calls, with the state of the function's module, and is ended and started again where
a deadline passes or it dies.
"""

from __future__ import annotations

import json
import logging
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from workers.errors import ConfigError
from workers.process.child_processes import end_group, module_command, module_environment
from workers.process.heartbeat import beat
from workers.user_functions.answers import Outcome, Reply
from workers.user_functions.calls import late
from workers.user_functions.messages import LENGTH, framed, unpack
from workers.user_functions.signature import Arguments

_log = logging.getLogger(__name__)

_BEAT_SECONDS = 1.0
_EXIT_SECONDS = 1.0  # between the end of the connection and that of the process
_MOST_BYTES = 64 << 20  # of one answer: numbers and bounded reasons


class _EndedError(Exception):
    """The child has closed the connection, or writes what is no message."""


class UserProcess:
    """Calls a function in a child process; see `workers.user_functions.calls.Caller.call`.

    Args:
        name: What the function is called in reasons.
        kind: "reward" or "judge".
        path: Its import path.
        folder: Where that is looked for first.
        where: The configuration key that names it, for errors.

    Raises:
        ConfigError: It cannot be imported, not be called so, or its import ends the process.
    """

    def __init__(self, name: str, kind: str, path: str, folder: str, where: str) -> None:
        self._name = name
        self._start: Callable[[], _Child] = lambda: _Child(kind, path, folder)
        self._child: _Child | None = self._start()
        try:
            wrong = self._child.imported(math.inf)
        except _EndedError:
            raise ConfigError(
                f"importing {path!r} ended its process: {self._end(by_itself=True)}",
                where=where,
                fix="a module must not end the process that imports it",
            ) from None
        if wrong:
            self._end()
            raise ConfigError(wrong["what"], where=wrong["where"], fix=wrong["fix"])

    def prepare(self, seconds: float) -> float:
        """Wait so long at most for a child that can be called; the seconds that it took."""
        began = time.monotonic()
        child = self._child = self._child or self._start()
        with suppress(TimeoutError, _EndedError):  # for the next call to tell
            child.imported(began + seconds, beating=True)
        return time.monotonic() - began

    def __call__(self, arguments: Arguments, count: int, seconds: float) -> Outcome:
        """Call the function; a child that is late or gone is ended.

        A child that is not prepared has the time of this call for its imports; if that is not
        enough it is left to them, and the next call waits for it.
        """
        until = time.monotonic() + seconds if seconds else math.inf
        child = self._child = self._child or self._start()
        try:
            if wrong := child.imported(until):
                self._end()
                reason = f"{self._name} could not be imported again"
                return Reply(math.nan, reason, str(wrong["what"]), lost=True)
            child.tell({"arguments": arguments, "count": count})
            outcome = unpack(child.hear(until), count)
            if outcome is None:
                raise _EndedError
        except TimeoutError:
            _log.warning("the %s was late on %d items", self._name, count)
            if child.is_ready:
                self._end()
            return late(self._name)
        except _EndedError:
            how = self._end(by_itself=True)
            _log.warning("the %s ended its process on %d items: %s", self._name, count, how)
            return Reply(math.nan, f"{self._name} ended its process: {how}", lost=True)
        except BaseException:  # nobody may read this answer as that to the next call
            self._end()
            raise
        return outcome

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._end()

    def _end(self, *, by_itself: bool = False) -> str:
        assert self._child is not None
        child, self._child = self._child, None
        return child.end(by_itself=by_itself)


class _Child:
    def __init__(self, kind: str, path: str, folder: str) -> None:
        self._peer, theirs = socket.socketpair()
        reading, self._lifeline = os.pipe()
        files = (theirs.fileno(), reading)
        try:
            self._process = subprocess.Popen(
                module_command("workers.user_functions.child", kind, *map(str, files)),
                stdin=subprocess.DEVNULL,
                env=module_environment(),
                pass_fds=files,
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(reading)
        self._peer.setblocking(False)
        self._close = weakref.finalize(self, _close, self._process, self._peer, self._lifeline)
        self._out, self._in = bytearray(), bytearray()
        self._wrong: dict[str, str] | None = None  # with the import; empty if it went well
        self.tell({"paths": sys.path, "path": path, "folder": folder})

    def tell(self, message: object) -> None:
        """Send this while `hear` waits for the answer."""
        self._out += framed(message)

    @property
    def is_ready(self) -> bool:
        """Whether it has imported its function."""
        return self._wrong == {}

    def imported(self, until: float, *, beating: bool = False) -> dict[str, str]:
        """Wait for the import; what was wrong with it, empty if nothing was. Raises as `hear`."""
        if self._wrong is None:
            self._wrong = dict(self.hear(until, beating=beating))
        return self._wrong

    def hear(self, until: float, *, beating: bool = False) -> Any:
        """The next message of the child, by a time of the monotonic clock.

        Args:
            until: That time; infinity = wait as long as the child lives.
            beating: Show progress although there is no such time.

        Raises:
            TimeoutError: None came by then.
            _EndedError: None will come.
        """
        while (message := self._message()) is None:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            moved = self._move(min(left, _BEAT_SECONDS))
            if beating or math.isfinite(until):
                beat()  # this deadline stands in for the signs of progress that a model gives
            # its own children can hold the connection open
            if not moved and self._process.poll() is not None:
                raise _EndedError
        try:
            return json.loads(message)
        except ValueError:
            raise _EndedError from None

    def end(self, *, by_itself: bool) -> str:
        """End the process, which may be about to end by itself, and say how it ended."""
        if by_itself:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_EXIT_SECONDS)
        self._close()
        code = self._process.returncode
        return f"exit code {code}" if code >= 0 else _signal_name(-code)

    def _message(self) -> bytes | None:
        if len(self._in) < LENGTH.size:
            return None
        (size,) = LENGTH.unpack_from(self._in)
        if size > _MOST_BYTES:
            raise _EndedError
        end = LENGTH.size + size
        if len(self._in) < end:
            return None
        message = bytes(self._in[LENGTH.size : end])
        del self._in[:end]
        return message

    def _move(self, seconds: float) -> bool:
        """Write and read what can be, waiting so long for something."""
        poll = select.poll()
        poll.register(self._peer, select.POLLIN | (select.POLLOUT if self._out else 0))
        try:
            for _, events in (found := poll.poll(math.ceil(seconds * 1000))):
                if events & select.POLLOUT:
                    del self._out[: self._peer.send(self._out)]
                if events & ~select.POLLOUT:
                    self._in += (got := self._peer.recv(1 << 20))
                    if not got:
                        raise _EndedError
        except BlockingIOError:
            return True
        except OSError:  # it closed the connection while there was something left to read
            raise _EndedError from None
        return bool(found)


def _close(process: subprocess.Popen[bytes], peer: socket.socket, lifeline: int) -> None:
    end_group(process)
    peer.close()
    os.close(lifeline)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

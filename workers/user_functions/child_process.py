"""The calling side of a user's function that runs in a child process.

A thread cannot be killed, and a function that holds the GIL (endless regex backtracking, C code)
would block all threads of the worker. The child process stays alive between calls and keeps the
state of the function's module; it is killed and restarted after a timeout, and restarted if it
dies.
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
_EXIT_SECONDS = 1.0  # to wait for the process to exit after it has closed the connection
_MOST_BYTES = 64 << 20  # limit of one answer, which holds numbers and bounded reasons


class EndedError(Exception):
    """The child has closed the connection or sent an invalid message."""


class UserProcess:
    """Calls a function in a child process; see `workers.user_functions.calls.Caller.call`.

    Args:
        name: Name of the function in failure reasons.
        kind: "reward", "judge" or "labeler".
        path: Its import path.
        folder: First folder of the import search.
        where: The configuration key that names it, for errors.

    Raises:
        ConfigError: It cannot be imported, has an unsuitable signature, or its import ends the
            process.
    """

    def __init__(self, name: str, kind: str, path: str, folder: str, where: str) -> None:
        self._name = name
        self._start: Callable[[], Child] = lambda: Child(kind, path, folder)
        self._child: Child | None = self._start()
        try:
            wrong = self._child.imported(math.inf)
        except EndedError:
            raise ConfigError(
                f"importing {path!r} ended its process: {self._end(by_itself=True)}",
                where=where,
                fix="a module must not end the process that imports it",
            ) from None
        if wrong:
            self._end()
            raise ConfigError(wrong["what"], where=wrong["where"], fix=wrong["fix"])

    def prepare(self, seconds: float) -> float:
        """Wait at most `seconds` for the child to import the function; returns the time used."""
        began = time.monotonic()
        child = self._child = self._child or self._start()
        with suppress(TimeoutError, EndedError):  # the next call reports it
            child.imported(began + seconds, beating=True)
        return time.monotonic() - began

    def __call__(self, arguments: Arguments, count: int, seconds: float) -> Outcome:
        """Call the function; kill the child if it is late or has ended.

        The import of a child that is not prepared counts towards `seconds`. If it takes longer, the
        child is not killed, and the next call waits for its import.
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
                raise EndedError
        except TimeoutError:
            _log.warning("the %s was late on %d items", self._name, count)
            if child.is_ready:
                self._end()
            return late(self._name)
        except EndedError:
            how = self._end(by_itself=True)
            _log.warning("the %s ended its process on %d items: %s", self._name, count, how)
            return Reply(math.nan, f"{self._name} ended its process: {how}", lost=True)
        except BaseException:  # the next call must not read the answer to this one
            self._end()
            raise
        return outcome

    def close(self) -> None:
        """Kill the child."""
        if self._child is not None:
            self._end()

    def _end(self, *, by_itself: bool = False) -> str:
        assert self._child is not None
        child, self._child = self._child, None
        return child.end(by_itself=by_itself)


class Child:
    """The process of a user's code, and the messages to and from it."""

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
        self._wrong: dict[str, str] | None = None  # error of the import; {} = none, None = unknown
        self.tell({"paths": sys.path, "path": path, "folder": folder})

    def tell(self, message: object) -> None:
        """Queue a message; `hear` sends it."""
        self._out += framed(message)

    @property
    def ended(self) -> bool:
        """Whether its process has ended."""
        return self._process.poll() is not None

    @property
    def is_ready(self) -> bool:
        """Whether it has imported its function."""
        return self._wrong == {}

    def imported(self, until: float, *, beating: bool = False) -> dict[str, str]:
        """Wait for the import; returns its error, {} if none. Raises the errors of `hear`."""
        if self._wrong is None:
            self._wrong = dict(self.hear(until, beating=beating))
        return self._wrong

    def hear(self, until: float, *, beating: bool = False) -> Any:
        """The next message of the child.

        Args:
            until: Deadline on the monotonic clock; infinity = wait as long as the child lives.
            beating: Send heartbeats even without a deadline.

        Raises:
            TimeoutError: No message came before the deadline.
            EndedError: No message will come.
        """
        while (message := self._message()) is None:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            moved = self._move(min(left, _BEAT_SECONDS))
            if beating or math.isfinite(until):
                beat()  # the deadline bounds this wait, so it counts as progress
            # Checked here, because the child's own children can hold the connection open.
            if not moved and self._process.poll() is not None:
                raise EndedError
        try:
            return json.loads(message)
        except ValueError:
            raise EndedError from None

    def end(self, *, by_itself: bool) -> str:
        """Kill the process and return how it ended; `by_itself` first waits for its own exit."""
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
            raise EndedError
        end = LENGTH.size + size
        if len(self._in) < end:
            return None
        message = bytes(self._in[LENGTH.size : end])
        del self._in[:end]
        return message

    def _move(self, seconds: float) -> bool:
        """Send and receive as much as possible now; waits up to `seconds` for the first byte."""
        poll = select.poll()
        poll.register(self._peer, select.POLLIN | (select.POLLOUT if self._out else 0))
        try:
            for _, events in (found := poll.poll(math.ceil(seconds * 1000))):
                if events & select.POLLOUT:
                    del self._out[: self._peer.send(self._out)]
                if events & ~select.POLLOUT:
                    self._in += (got := self._peer.recv(1 << 20))
                    if not got:
                        raise EndedError
        except BlockingIOError:
            return True
        except OSError:  # the child closed the connection with data still unread
            raise EndedError from None
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

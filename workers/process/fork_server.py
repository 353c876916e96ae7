"""A process that has done slow imports, and forks a copy of itself for each script it is asked for.

`python -m workers.process.fork_server FD MODULE...` imports the modules once; a name after a minus
is kept from being imported meanwhile. A client connects to the listening socket with descriptor FD,
and sends a JSON line (arguments, environment, working folder) with its standard streams. A copy
then runs that Python script as a new process would, without the seconds of the imports. The
connection ends when the copy does. The server ends with its standard input, whose other end its
owner holds.

A fork copies one thread only, so none is started here. What libraries read from the environment
during their import is that of the server.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

_CHUNK = 1 << 16  # bytes
_REQUEST_SECONDS = 10.0  # for a connected client to send its request


@dataclass(slots=True)
class _Server:
    listener: socket.socket
    ended: socket.socket  # readable when a copy has ended
    clients: dict[int, socket.socket] = field(default_factory=dict)  # by pid of their copies

    def serve(self) -> dict[str, Any] | None:
        """Fork copies until standard input ends; returns the request in a copy, else None."""
        watched = [sys.stdin.fileno(), self.listener, self.ended]
        while True:
            ready, _, _ = select.select(watched, [], [])
            if self.ended in ready:
                self.ended.recv(_CHUNK)
                self._reap()
            if watched[0] in ready:
                return None
            if self.listener in ready:
                client, _ = self.listener.accept()
                request, streams = _receive(client)
                if request is None:
                    client.close()
                elif self._fork(client):
                    _become(request, streams)
                    return request
                for stream in streams:
                    os.close(stream)

    def _fork(self, client: socket.socket) -> bool:
        """Fork; returns whether this is the copy, which keeps `client` open until it ends."""
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for each in (*self.clients.values(), self.listener, self.ended):
                each.close()
            client.detach()
            return True
        self.clients[pid] = client
        _tell(client, pid)
        return False

    def _reap(self) -> None:
        for pid in list(self.clients):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with self.clients.pop(pid) as client:
                    _tell(client, os.waitstatus_to_exitcode(status))


def _tell(client: socket.socket, number: int) -> None:
    with suppress(OSError):  # it may have ended
        client.sendall(b"%d\n" % number)


def _receive(client: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The request of a client and its standard streams; no request if it is not whole."""
    client.settimeout(_REQUEST_SECONDS)
    streams: list[int] = []
    try:
        data, streams, _, _ = socket.recv_fds(client, _CHUNK, 3)
        while not data.endswith(b"\n"):
            more = client.recv(_CHUNK)
            if not more:
                return None, streams
            data += more
        client.settimeout(None)
        return json.loads(data), streams
    except (OSError, ValueError):
        return None, streams


def _become(request: dict[str, Any], streams: Sequence[int]) -> None:
    """Take over streams, environment, folder and arguments of a request."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = list(request["arguments"])
    tempfile.tempdir = None  # from TMPDIR, when it is next asked for
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        numpy.random.seed()  # copies would else draw the same numbers
    if torch is not None and (threads := os.environ.get("OMP_NUM_THREADS")):
        torch.set_num_threads(int(threads))  # OpenMP has read that of the server


def _preload(names: Sequence[str]) -> None:
    hidden = [name[1:] for name in names if name.startswith("-")]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  None: not importable
    for name in names:
        if not name.startswith("-"):
            with suppress(ImportError):  # a copy that needs it imports it again, and reports it
                importlib.import_module(name)
    for name in hidden:
        sys.modules.pop(name, None)
    sys.stdout.flush()
    gc.collect()
    gc.freeze()  # collections in a copy would else write to every page, which then is not shared


def main() -> None:
    """Serve; in a copy run its script."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    _preload(sys.argv[2:])
    ended, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that the wakeup is written
    signal.set_wakeup_fd(wakeup.fileno())
    if _Server(listener, ended).serve() is not None:
        wakeup.close()
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

"""What Ray's node runs to start a worker: a copy of a process that has done its imports.

In place of Ray's own script, which imports Ray to set environment variables. The variable
REHEARSAL_FORK_SERVER of a worker's environment names the socket of a fork server
(`workers.process.fork_server`). Without one, or if it has ended, a new Python starts, and does its
own imports. This file is run by its path, once per worker, and so imports nothing but the standard
library.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence

SERVER = "REHEARSAL_FORK_SERVER"
_LANGUAGE, _CONTEXT = "--language=", "--serialized-runtime-env-context="


def main() -> int:
    """Start the worker and wait for its end; returns its exit code."""
    rest = [a for a in sys.argv[1:] if not a.startswith((_LANGUAGE, _CONTEXT))]
    context = next((a[len(_CONTEXT) :] for a in sys.argv if a.startswith(_CONTEXT)), "{}")
    environment = {**os.environ, **(json.loads(context).get("env_vars") or {})}
    address = environment.pop(SERVER, "")
    code = None
    if address:
        with socket.socket(socket.AF_UNIX) as server:
            ask(server, address, rest, environment, (0, 1, 2))
            code = exit_code(server)
    if code is None:
        os.execve(sys.executable, [sys.executable, *rest], environment)
    return code


def ask(
    server: socket.socket,
    address: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    streams: Sequence[int],
) -> None:
    """Ask a fork server for a copy that runs a script; `exit_code` shows whether it is there.

    Args:
        server: Not connected yet.
        address: Socket of the server.
        arguments: Path of the script, and its arguments.
        environment: Of the copy.
        streams: Descriptors of its standard input, output and error.
    """
    folder = os.getcwd()  # noqa: PTH109  pathlib would be a fifth of this script's start
    wanted = {"arguments": [*arguments], "environment": {**environment}, "folder": folder}
    line = json.dumps(wanted).encode() + b"\n"
    try:
        server.connect(address)
        socket.send_fds(server, [line[:1]], list(streams))  # a long line may not be sent whole
        server.sendall(line[1:])
    except OSError:
        return


def exit_code(server: socket.socket) -> int | None:
    """Wait for the end of the copy; None if there is none, because the server has ended.

    Raises:
        TimeoutError: It took longer than the timeout of the socket.
    """
    try:
        with server.makefile("rb") as answers:
            started, ended = answers.readline(), answers.readline()
    except TimeoutError:
        raise
    except OSError:
        return None
    if not started:
        return None
    return int(ended) if ended else 1


if __name__ == "__main__":
    sys.exit(main())

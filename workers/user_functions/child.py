"""The child process of a user's function: imports it once, then answers calls.

`python -m workers.user_functions.child KIND CONNECTION LIFELINE`, where the last two are open file
descriptors: a socket for messages (`workers.user_functions.messages`), and the read end of a pipe
without data. When the other end of the pipe closes, the kernel kills this process and all processes
that it has started. That needs no code to run here: the function may hold the GIL forever.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from workers.errors import ConfigError
from workers.user_functions.calls import Caller
from workers.user_functions.environment_function import load_players
from workers.user_functions.judge_function import load_judge
from workers.user_functions.labeler_function import load_labeler
from workers.user_functions.messages import framed, pack, receive
from workers.user_functions.reviser_function import load_reviser
from workers.user_functions.reward_function import load_process_reward, load_reward

_LOADERS: dict[str, Callable[[str, str], Caller]] = {
    "reward": load_reward, "steps": load_process_reward, "judge": load_judge,
    "labeler": load_labeler, "reviser": load_reviser,
}  # fmt: skip


def main(kind: str, connection: str, lifeline: str) -> None:
    """Answer calls until the connection closes."""
    for number in (int(connection), int(lifeline)):
        os.set_inheritable(number, False)
    _die_with(int(lifeline))
    for stream in (sys.stdout, sys.stderr):  # keep its output if it is killed
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    peer = socket.socket(fileno=int(connection))
    begin = receive(peer)
    sys.path[:] = begin["paths"]  # import as the parent process would
    try:
        answer = _answering(kind, begin["path"], begin["folder"])
    except ConfigError as error:
        peer.sendall(framed({"what": error.what, "where": error.where, "fix": error.fix}))
        return
    peer.sendall(framed({}))
    while (asked := receive(peer)) is not None:
        peer.sendall(framed(answer(asked)))


def _answering(kind: str, path: str, folder: str) -> Callable[[Any], object]:
    if kind == "environment":
        return load_players(path, folder).answer
    caller = _LOADERS[kind](path, folder)
    return lambda asked: pack(caller.call(asked["arguments"], asked["count"], 0.0))


def _die_with(lifeline: int) -> None:
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpid())  # the whole group
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
    try:
        closed = os.read(lifeline, 1) == b""
    except BlockingIOError:
        return
    if closed:  # closed before the signal was set up
        os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # do not wait for threads and exit handlers of the user's module

"""The process of a user's function: imports it once, then answers call after call.

`python -m workers.user_functions.child KIND CONNECTION LIFELINE`, where the last two are open
files: a socket that carries messages (`workers.user_functions.messages`), and the reading end of a
pipe that carries nothing. The kernel ends this process, and all that it has started, when the other
end of the pipe closes. Nothing in here has to run for that: the function may hold Python's lock for
ever.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable

from workers.errors import ConfigError
from workers.user_functions.calls import Caller
from workers.user_functions.judge_function import load_judge
from workers.user_functions.messages import framed, pack, receive
from workers.user_functions.reward_function import load_reward

_LOADERS: dict[str, Callable[[str, str], Caller]] = {"reward": load_reward, "judge": load_judge}


def main(kind: str, connection: str, lifeline: str) -> None:
    """Answer until the connection closes."""
    for number in (int(connection), int(lifeline)):
        os.set_inheritable(number, False)
    _die_with(int(lifeline))
    for stream in (sys.stdout, sys.stderr):  # what it prints is told even if it is then ended
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    peer = socket.socket(fileno=int(connection))
    begin = receive(peer)
    sys.path[:] = begin["paths"]  # as where the function used to be imported: in the parent
    try:
        caller = _LOADERS[kind](begin["path"], begin["folder"])
    except ConfigError as error:
        peer.sendall(framed({"what": error.what, "where": error.where, "fix": error.fix}))
        return
    peer.sendall(framed({}))
    while (asked := receive(peer)) is not None:
        outcome = caller.call(asked["arguments"], asked["count"], 0.0)
        peer.sendall(framed(pack(outcome)))


def _die_with(lifeline: int) -> None:
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpid())  # the whole group
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
    try:
        closed = os.read(lifeline, 1) == b""
    except BlockingIOError:
        return
    if closed:  # before the kernel was asked to watch it
        os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # threads and exit handlers of the function's module are not waited for

"""Health of Ray's own servers that a run depends on.

On this machine the state of their processes shows it at once. The servers of a joined cluster are
probed through the network: a gRPC server answers the first bytes of a connection, and a process
that is stopped or has ended does not.
"""

from __future__ import annotations

import math
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import psutil
import ray

from orchestrator.supervision.worker_life import Clock, Rules

# Marks in a command line, before and after a process has set its title. A run does not need Ray's
# other processes (its monitor, the log monitor and the dashboard's server).
_MARKS = {
    "gcs_server": ("gcs_server",),
    "raylet": ("raylet",),
    "dashboard_agent": ("ray::DashboardAgent", "dashboard/agent.py"),
    "runtime_env_agent": ("ray::RuntimeEnvAgent", "runtime_env/agent/main.py"),
}
_GONE = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
_READ = 1 << 16  # bytes at the end of a log in which errors are looked for
_SHOWN = 300  # characters
# [time C pid tid] (process) file.cc:line: message
_ERROR = re.compile(r"^\[[^\]]* [EFC] [^\]]*\] (?:\([^)]*\) )?(?:\S+:\d+: )?(.*)$", re.MULTILINE)
# Without runtime_env_agent no worker can start; nothing waits for a stopped dashboard_agent.
_ASKED = ("gcs_server", "raylet", "runtime_env_agent")
# The HTTP/2 preface and an empty SETTINGS frame, to which the other side answers with its own.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


class Servers(Protocol):
    """The servers of one cluster."""

    def look(self) -> str:
        """What keeps the cluster from working, as a phrase; "" if it is healthy."""
        ...

    def ended(self) -> str:
        """The same, only for servers whose end shows at once; cheap, and safe in any thread."""
        ...


@dataclass(slots=True)
class _Server:
    name: str
    process: psutil.Process
    stopped: int = 0  # consecutive looks that found it stopped

    def __str__(self) -> str:
        return f"{self.name} (pid {self.process.pid})"


@dataclass(slots=True)
class LocalServers:
    """Servers that this process started, observed through their process states.

    Args:
        patience: How many consecutive looks must find a server stopped. Looks are counted instead
            of seconds, because stopping a whole job (Ctrl-Z) stops the looks, too.
        started: Lists the processes; called until all servers are found.
        asked: The same servers, probed through the network, because a running process may hang.
        logs: Where they write `NAME.out` and `NAME.err`; the folder goes with the run.
    """

    patience: int
    started: Callable[[], Iterable[psutil.Process]]
    asked: Servers | None = None
    logs: Callable[[], Path | None] = lambda: None
    _found: list[_Server] = field(default_factory=list)

    def look(self) -> str:
        """Which servers ended or are stopped, and how; "" if all are healthy."""
        self._find()
        stopped = [each for each in self._found if each.name in _ASKED and _stopped(each)]
        for each in self._found:
            each.stopped = each.stopped + 1 if each in stopped else 0
        held = [f"{each} is stopped (SIGSTOP)" for each in stopped if each.stopped >= self.patience]
        found = self.ended() or "; ".join(held)
        return found if found or stopped or self.asked is None else self.asked.look()

    def ended(self) -> str:
        """Which servers ended, and by which signal; then also which are stopped.

        A raylet ends by itself when one of its agents is stopped while they start.
        """
        gone = self._gone()
        held = [f"{each} is stopped (SIGSTOP)" for each in self._found if gone and _stopped(each)]
        ends = [f"{each} ended{_how(each.process.pid)}{self._said(each)}" for each in gone]
        return "; ".join([*ends, *held])

    def _said(self, server: _Server) -> str:
        """Its last error, quoted: its log is deleted with the folder of Ray's servers."""
        logs = self.logs()
        said = last_error(logs, server.name) if logs is not None else ""
        return f', after "{said}"' if said else ""

    def left(self) -> bool:
        """Whether one of them ended by itself, not by a signal from somebody."""
        return any(not _how(each.process.pid) for each in self._gone())

    def _gone(self) -> list[_Server]:
        return [each for each in self._found if _status(each.process) in _GONE]

    def well(self) -> bool:
        """Whether all of them run at this moment."""
        return not (self.ended() or any(map(_stopped, self._found)))

    def _find(self) -> None:
        """Find servers that were started since the last look."""
        known = {each.name for each in self._found}
        if known == _MARKS.keys():
            return
        for process in self.started():
            with suppress(psutil.Error):
                name = server_name(process.cmdline())
                if name and name not in known:
                    known.add(name)
                    self._found = [*self._found, _Server(name, process)]


def last_error(logs: Path, server: str) -> str:
    """The message of the last line of level error or fatal in a server's log; "" without one."""
    for ending in ("out", "err", "log"):
        with suppress(OSError), (logs / f"{server}.{ending}").open("rb") as lines:
            lines.seek(max(0, os.fstat(lines.fileno()).st_size - _READ))
            told = _ERROR.findall(lines.read().decode("utf-8", "replace"))
            if told:
                return "".join(c for c in told[-1][:_SHOWN] if c.isprintable()).strip()
    return ""


def server_name(words: Sequence[str]) -> str:
    """Which of Ray's servers has this command line; "" for any other process."""
    for name, marks in _MARKS.items():
        if any(word == mark or word.endswith(f"/{mark}") for word in words[:4] for mark in marks):
            return name
    return ""


def _status(process: psutil.Process) -> str:
    try:
        # The pid may have been reused by another process.
        return process.status() if process.is_running() else psutil.STATUS_DEAD
    except psutil.Error:
        return psutil.STATUS_DEAD


def _stopped(server: _Server) -> bool:
    return _status(server.process) == psutil.STATUS_STOPPED


def _how(pid: int) -> str:
    """The signal that ended a child of this process; known until the child is waited for."""
    with suppress(OSError, ValueError, IndexError):
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        number = int(status[-1]) & 0x7F
        return f" by {signal.Signals(number).name}" if number else ""
    return ""


@dataclass(slots=True)
class DistantServers:
    """The servers of a joined cluster, probed through the network.

    Args:
        addresses: Name and HOST:PORT of each.
        patience: Seconds without an answer after which a server counts as lost. On clusters set up
            for it, Ray itself can replace a lost head.
        ask: Whether a server answers at an address.
        often: Seconds from one probe to the next; looks in between do not probe.
        clock: Monotonic seconds.
    """

    addresses: dict[str, str]
    patience: float
    ask: Callable[[str], bool]
    often: float = 0.0
    clock: Clock = time.monotonic
    _silent: dict[str, float] = field(default_factory=dict)  # name -> time of first missed answer
    _due: float = -math.inf

    def look(self) -> str:
        """Which servers have not answered for too long; "" if all are healthy."""
        found: list[str] = []
        if self.clock() < self._due:
            return ""
        for name, address in self.addresses.items():
            now = self.clock()
            if self.ask(address):
                self._silent.pop(name, None)
            elif self.clock() - self._silent.setdefault(name, now) >= self.patience:
                found.append(f"{name} at {address} has not answered for {self.patience:.0f} s")
        self._due = self.clock() + self.often
        return "; ".join(found)

    def ended(self) -> str:
        """Always "", because the end of a remote process does not show at once."""
        return ""


def distant_servers(rules: Rules) -> DistantServers:
    """Probes of the two servers that this driver needs: the head's GCS and the local raylet."""
    context = ray.get_runtime_context()
    own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    raylet = f"{own['NodeManagerAddress']}:{own['NodeManagerPort']}"
    addresses = {"gcs_server": context.gcs_address, "raylet": raylet}
    often = rules.probe_seconds / 3
    patience = rules.probe_seconds * rules.probes_to_condemn
    return DistantServers(addresses, patience, partial(answers, seconds=often), often)


def answers(address: str, seconds: float) -> bool:
    """Whether a gRPC server runs at HOST:PORT; a connection reset also shows that it does."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds) as line:
            line.settimeout(seconds)
            line.sendall(_GREETING)
            line.recv(1)
    except ConnectionResetError:
        return True
    except OSError:  # refused, no route, or timeout (the kernel accepts for a stopped process)
        return False
    return True

"""Processes that import what the roles need, while the driver prepares; roles are copies of them.

Roles that need the same libraries then import them once, and while Ray still starts. Only for a
local cluster without GPUs: a process that has called CUDA must not be copied.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import socket
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import psutil

from orchestrator.cluster.start_worker import ask, exit_code
from orchestrator.config.cluster import Accelerator, RoleName
from orchestrator.config.schema import Config
from orchestrator.planning.worker_specs import role_environment, rollout_environment
from orchestrator.process.stop_signals import shielded
from orchestrator.process.temporary_folders import Scratch
from workers.errors import DeadlineError, RoleDiedError
from workers.process import apart
from workers.process.child_processes import module_command, module_environment
from workers.process.user_code import words_of_output

_BACKLOG = 64
_END_SECONDS = 5.0
_HELPER = "a helper process of the driver"


class Apart(Protocol):
    """Starts a function of ours in another process; what it returns waits for the value."""

    def __call__(
        self, function: str, *arguments: Any, seconds: float, **named: Any
    ) -> Callable[[], Any]:
        """Call `module:name`; arguments and value can be pickled."""
        ...


def here(function: str, *arguments: Any, seconds: float, **named: Any) -> Callable[[], Any]:
    """`Apart` without another process: the function runs when its value is fetched."""
    del seconds
    return lambda: apart.run(function, arguments, named)


@dataclass(frozen=True, slots=True)
class Preload:
    """One fork server: what it imports, and for which roles."""

    name: str
    roles: tuple[RoleName, ...]
    modules: tuple[str, ...]
    environment: Mapping[str, str]


# Ray reads its settings while it is imported, and a worker's differ from those of this process.
_HIDDEN = ("-ray",)
_TRAINERS = (RoleName.policy, RoleName.critic)
_MODULES = {
    RoleName.policy: ("workers.roles.policy", "workers.models.load"),
    RoleName.critic: ("workers.roles.critic", "workers.models.load"),
    RoleName.reference: ("workers.roles.reference",),
    RoleName.reward: ("workers.roles.reward",),
    RoleName.environment: ("workers.roles.environment",),
}


def preloads(config: Config, roles: Collection[RoleName]) -> list[Preload]:
    """What to import for these roles: engines in one process, all others in a second one."""
    cluster = config.cluster
    if cluster.accelerator is not Accelerator.cpu or cluster.address != "local":
        return []
    found: list[Preload] = []
    if RoleName.rollout in roles:
        engine = f"workers.generation.{config.rollout.engine.value}_engine"
        environment = role_environment(cluster, RoleName.rollout) | rollout_environment(config)
        modules = ("workers.roles.rollout", engine)
        found.append(Preload("engines", (RoleName.rollout,), (*_HIDDEN, *modules), environment))
    others = tuple(role for role in RoleName if role in roles and role in _MODULES)
    if others:
        modules = tuple(module for role in others for module in _MODULES[role])
        if set(others) & set(_TRAINERS):
            modules += ("workers.training.deepspeed_engine",)
        modules = (*_HIDDEN, *dict.fromkeys(modules))
        found.append(Preload("models", others, modules, role_environment(cluster, others[0])))
    return found


class _Call:
    """One call of a function in a copy of a fork server."""

    def __init__(self, what: apart.What, place: Path, seconds: float) -> None:
        self._what = what
        self._request, self._result, self._log = map(place.with_suffix, (".in", ".out", ".log"))
        self._server = socket.socket(socket.AF_UNIX)
        self._server.settimeout(seconds)

    def start(self, address: str, environment: Mapping[str, str]) -> None:
        self._request.write_bytes(pickle.dumps(self._what))
        script = [str(apart.__file__), str(self._request), str(self._result)]
        with self._log.open("wb") as output, Path(os.devnull).open("rb") as nothing:
            streams = (nothing.fileno(), output.fileno(), output.fileno())
            ask(self._server, address, script, environment, streams)

    def value(self) -> Any:
        try:
            with self._server:
                code = exit_code(self._server)
        except TimeoutError as error:
            raise DeadlineError(
                f"{self._what[0]} did not end within {self._server.gettimeout()} s",
                where=_HELPER,
                fix="free the machine, or raise run.role_start_seconds",
            ) from error
        if code is None:
            return apart.run(*self._what)
        if not self._result.exists():
            raise RoleDiedError(
                f"{self._what[0]} ended with exit code {code}{words_of_output(self._log)}",
                where=_HELPER,
                fix="if the machine ran out of memory, free some",
            )
        value, error = pickle.loads(self._result.read_bytes())
        if error is not None:
            raise error
        return value


class ForkServers:
    """The fork servers of a run (`workers.process.fork_server`); a context manager."""

    def __init__(self, preloads: Sequence[Preload]) -> None:
        """Start them; they import in the background."""
        self._scratch = Scratch("fork") if preloads else None
        self._servers: list[subprocess.Popen[bytes]] = []
        self._addresses: dict[RoleName, str] = {}
        self._calls = itertools.count()
        self._started = {role: each for each in preloads for role in each.roles}
        for each in preloads:
            self._start(each)

    def _start(self, preload: Preload) -> None:
        assert self._scratch is not None
        path = str(self._scratch.path / preload.name)
        # Made here, so that clients can connect before the server has started.
        with socket.socket(socket.AF_UNIX) as listener, shielded(signal.SIGINT):
            listener.bind(path)
            listener.listen(_BACKLOG)
            number = listener.fileno()
            server = subprocess.Popen(
                module_command("workers.process.fork_server", str(number), *preload.modules),
                stdin=subprocess.PIPE,  # ends with this process
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # numpy would else start threads, which a copy lacks.
                env=module_environment() | {**preload.environment, "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=[number],
            )
        self._servers.append(server)
        self._addresses |= dict.fromkeys(preload.roles, path)

    def address(self, role: RoleName) -> str:
        """Socket of the server that is copied for a role; "" if there is none."""
        return self._addresses.get(role, "")

    @property
    def serves_models(self) -> bool:
        """Whether a server has the libraries of models."""
        return any(role in _MODULES for role in self._started)

    def call(
        self, function: str, *arguments: Any, seconds: float, **named: Any
    ) -> Callable[[], Any]:
        """Start a function that needs the libraries of models, which the driver does without.

        It runs in a copy of a fork server; if there is none, here, when its value is fetched.

        Args:
            function: `module:name`.
            arguments: Its arguments; these and its value can be pickled.
            seconds: Deadline.
            named: Its arguments by name.

        Returns:
            A function that waits for the value, and raises what the function raised, DeadlineError
            or RoleDiedError.
        """
        if self._scratch is None or not self.serves_models:
            return here(function, *arguments, seconds=seconds, **named)
        role = next(role for role in self._started if role in _MODULES)
        place = self._scratch.path / f"call-{next(self._calls)}"
        environment = module_environment() | dict(self._started[role].environment)
        call = _Call((function, arguments, named), place, seconds)
        call.start(self.address(role), environment)
        return call.value

    def processes(self) -> list[psutil.Process]:
        """The servers, their copies, and what these have started."""
        found: list[psutil.Process] = []
        for server in self._servers:
            try:
                process = psutil.Process(server.pid)
                found += [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        return found

    def close(self) -> None:
        """End the servers and their copies; safe to call twice."""
        if self._scratch is None:
            return
        processes = self.processes()
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        for server in self._servers:
            assert server.stdin is not None
            server.stdin.close()
            server.wait(_END_SECONDS)
        psutil.wait_procs(processes, timeout=_END_SECONDS)
        self._servers.clear()
        self._scratch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

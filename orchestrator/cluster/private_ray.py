"""Private Ray servers on this machine, which only one run can reach and which end with it.

Signals that request a run to stop often go to every process of a job at once (a closed terminal,
systemd, scancel, `kill -- -PGID`). Ray's servers and workers would end before the run is saved, so
they are started with these signals blocked: only the driver acts on them.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import ray_constants, services, utils, worker
from ray._private.parameter import RayParams

from orchestrator.cluster import start_worker
from orchestrator.cluster.fork_servers import ForkServers
from orchestrator.process.forced_exit import LEAVING, LastResort
from orchestrator.process.stop_signals import shielded
from orchestrator.process.temporary_folders import Scratch
from orchestrator.supervision.ray_servers import LocalServers, Servers
from orchestrator.supervision.server_guard import Guard
from workers.errors import DeadlineError

QUIET: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
# Ray's switch for operating systems without cluster support: its servers then listen on loopback
# only; by default other machines can reach them.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Unless the user has set it. By default Ray's workers have niceness 15: beside a busy process of
# another program, which has 0, they get 3 % of its core, and the run seems to hang.
_PRIORITY = {"RAY_worker_niceness": "0"}
# Parts of Ray's error messages when one of its servers is slow, ends or is stopped during the
# start. While Ray waits for the file, no other thread runs, so the guard cannot see this.
_SLOW_STARTS = (
    "node timed out during startup",
    "Timed out waiting for file",
    "Failed to start GCS",
)
# How often servers that end by themselves while they start are started again: a raylet does that
# when its agents take too long on a busy machine, and also for reasons that stay.
_STARTS_AGAIN = 2
_LEAVE_SECONDS = 5.0  # processes that take longer to end are killed
_LOOK_SECONDS = 0.5
_STOPPED_LOOKS = 8  # consecutive looks after which a stopped server counts as lost
# First words of Ray's messages on lost servers; guesses (out of memory) and its own logs follow.
_GUESSES = ("Raylet is terminated", "The node with node id")


class PrivateRay:
    """The processes and the scratch folder of a cluster that this process started."""

    def __init__(
        self,
        resort: LastResort | None = None,
        forks: ForkServers | None = None,
        tries_left: int = 0,
    ) -> None:
        self._forks = forks
        self._scratch = Scratch("ray")
        self._before = {child.pid for child in psutil.Process().children()}
        self._servers = LocalServers(_STOPPED_LOOKS, self._processes, logs=lambda: self.log_folder)
        self.guard = Guard(self._servers, _LOOK_SECONDS, resort)
        self.error_logs: Path | None = None  # gets the roles' logs on `destroy` without `close`
        if resort is not None:
            resort.steps.append(self.destroy)
        self.tries_left = tries_left
        self.guard.excused = self.may_start_again
        with shielded():
            self.guard.start()

    @property
    def folder(self) -> Path:
        """Folder of Ray's sockets and logs."""
        return self._scratch.path

    @property
    def temporary(self) -> Path:
        """Folder of the roles' temporary files; created on access."""
        path = self._scratch.path / "tmp"
        path.mkdir(exist_ok=True)
        return path

    @property
    def log_folder(self) -> Path:
        """Folder of the processes' logs."""
        return self._scratch.path / "session_latest" / "logs"

    def may_start_again(self) -> bool:
        """Whether a server ended by itself while they start, and this is not the last try."""
        return self.tries_left > 0 and self._servers.left()

    def ask(self, asked: Servers) -> None:
        """Have the guard probe `asked`, the same servers through the network, too."""
        self._servers.asked = asked

    def close(self, keep_logs: Path | None = None) -> None:
        """End every process within a bounded time, and delete the folder.

        Args:
            keep_logs: A folder that first gets the logs of the roles' processes.
        """
        self.guard.stand_down()
        if not self._servers.well():
            _kill(self._all_processes())
        _shut_down(self._processes())
        self._end_all()
        if keep_logs is not None:
            _copy_role_logs(self.log_folder, keep_logs)
        self._scratch.close()

    def destroy(self) -> None:
        """Kill every process, and delete the folder, without disconnecting from Ray."""
        self._end_all()
        if self.error_logs is not None:
            _copy_role_logs(self.log_folder, self.error_logs)
        self._scratch.close()

    def _end_all(self) -> None:
        processes = self._all_processes()
        _kill(processes)
        psutil.wait_procs(processes, timeout=_LEAVE_SECONDS)

    def _processes(self) -> list[psutil.Process]:
        """Ray's servers, which are new children of this process, and all their descendants.

        The workers among these may be copies of fork servers.
        """
        found: list[psutil.Process] = self._forks.processes() if self._forks is not None else []
        for root in psutil.Process().children():
            if root.pid not in self._before and _is_ray(root):
                found += [root, *_descendants(root)]
        return found

    def _all_processes(self) -> list[psutil.Process]:
        """`_processes`, and orphans of ended servers, found because they write into the folder."""
        found = {process.pid: process for process in self._processes()}
        found |= {process.pid: process for process in _writers(self._scratch.path)}
        found.pop(os.getpid(), None)
        return list(found.values())


def start_private_ray(
    cpus: int,
    object_store_mib: int,
    seconds: float,
    authenticate: Callable[[Path], object],
    resort: LastResort | None = None,
    forks: ForkServers | None = None,
) -> PrivateRay:
    """Start Ray's servers on this machine; retry while Ray reports one of `_SLOW_STARTS`.

    Ray's fixed limit of half a minute for their start can be too short on a busy machine; servers
    that end by themselves are started again `_STARTS_AGAIN` times.

    Args:
        cpus: CPUs that Ray may assign on this machine.
        object_store_mib: Shared memory for objects, in MiB.
        seconds: No retry starts after this time.
        authenticate: Gets the path of a token file to create, before Ray starts.
        resort: Ends the process if a server is lost and the driver does not react; None: nothing
            does.
        forks: Processes that the workers are copied from; they end with the servers.

    Raises:
        DeadlineError: they did not start in time.
        ClusterLostError: one of them ended meanwhile.
    """
    deadline, tries_left = time.monotonic() + seconds, _STARTS_AGAIN
    while True:
        private = PrivateRay(resort, forks, tries_left)
        try:
            authenticate(private.folder / "auth_token")
            # Signals stay blocked until own_signals has put our handler back.
            with shielded(), own_signals(), _set_up(), _only_needed():
                _leave_guesses_out()
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    object_store_memory=object_store_mib << 20,
                    _temp_dir=str(private.folder),
                    **QUIET,
                )
        except BaseException as error:
            left = isinstance(error, Exception) and private.may_start_again()
            tries_left -= left
            slow = left or any(words in str(error) for words in _SLOW_STARTS)
            try:
                if not slow:
                    private.guard.look()
            finally:
                private.close()
            if not slow:
                raise
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"Ray's servers did not start within {seconds:.0f} s: {error}",
                    where="cluster",
                    fix="free the machine, or raise run.role_start_seconds",
                ) from error
        else:
            private.tries_left = 0
            return private


@contextmanager
def own_signals() -> Iterator[None]:
    """Keep our SIGTERM handler.

    ray.init installs one that exits without unwinding the stack, which this prevents. Its native
    code installs one that aborts the process, which this replaces by ours afterwards.
    """
    install, handler = utils.set_sigterm_handler, signal.getsignal(signal.SIGTERM)
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = install
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _set_up() -> Iterator[None]:
    """Give Ray's servers their settings: on loopback, and workers of the usual priority."""
    assert hasattr(ray_constants, "ENABLE_RAY_CLUSTER"), "another release of Ray"
    before = ray_constants.ENABLE_RAY_CLUSTER  # read from the environment at import
    mine = _LOOPBACK | {n: value for n, value in _PRIORITY.items() if n not in os.environ}
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ.update(mine)  # for the servers
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        for name in mine:
            os.environ.pop(name, None)


@contextmanager
def _only_needed() -> Iterator[None]:
    """Start workers by our script, and none of the servers that a run does not need.

    These are the autoscaler's monitor, the log monitor, and the dashboard's server.
    """
    given, serve = RayParams.update_if_absent, services.start_api_server

    def update(self: RayParams, **kwargs: Any) -> None:
        if "setup_worker_path" in kwargs:
            kwargs |= {"setup_worker_path": start_worker.__file__, "include_log_monitor": False}
            self.no_monitor = True
        given(self, **kwargs)

    RayParams.update_if_absent = update
    services.start_api_server = lambda *_, **__: ("", None)
    try:
        yield
    finally:
        RayParams.update_if_absent, services.start_api_server = given, serve


def _leave_guesses_out() -> None:
    """Suppress Ray's guesses at why a server ended; the guard knows which one ended, and how.

    For a killed raylet Ray would print, in 40 lines, that memory might have run out.
    """
    show = worker.print_to_stdstream

    def shown(data: dict[str, Any], *rest: Any, **named: Any) -> None:
        if not str(data["lines"][0]).startswith(_GUESSES):
            show(data, *rest, **named)

    if show.__name__ != shown.__name__:
        worker.print_to_stdstream = shown


def _shut_down(processes: list[psutil.Process]) -> None:
    """Disconnect from Ray and kill its servers, within a bounded time even if servers hang.

    Ray would send SIGTERM, which is blocked in its servers, to one after the other and wait for
    each. They have nothing to save, so they are killed. A Ray call that still waits for their
    answer then gets an error.
    """
    node = worker._global_node
    if node is not None:
        end = node.kill_all_processes
        node.kill_all_processes = lambda **_: end(check_alive=False, allow_graceful=False)
    leave(lambda: _kill(processes))


def leave(hurry: Callable[[], object] = lambda: None) -> None:
    """Disconnect from Ray within a bounded time.

    Args:
        hurry: Called if it takes long.
    """
    leaving = threading.Thread(target=ray.shutdown, name=LEAVING, daemon=True)
    leaving.start()
    leaving.join(_LEAVE_SECONDS)
    if leaving.is_alive():
        hurry()
        leaving.join(_LEAVE_SECONDS)
    if leaving.is_alive():  # Ray's exit handler would wait again
        atexit.unregister(worker.shutdown)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def _writers(folder: Path) -> list[psutil.Process]:
    """This user's processes that write into the folder; other processes may read there."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.uids().real != os.getuid():
                continue
            files: list[Any] = process.open_files()
            if any(f.mode != "r" and Path(f.path).is_relative_to(folder) for f in files):
                found.append(process)
    return found


def _is_ray(process: psutil.Process) -> bool:
    try:
        return any("/ray/" in part for part in process.cmdline()[:4])
    except psutil.NoSuchProcess:
        return False


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _copy_role_logs(source: Path, target: Path) -> None:
    """Copy the roles' logs; ignores copy errors, because the run already ends with an error."""
    files = [path for path in source.glob("worker-*") if path.stat().st_size]
    with suppress(OSError):
        if files:
            target.mkdir(exist_ok=True)
        for path in files:
            shutil.copyfile(path, target / path.name)

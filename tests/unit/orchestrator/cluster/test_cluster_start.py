"""What happens when Ray itself does not come up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
import ray
from composing import composed

from orchestrator.cluster import joining, private_ray, ray_cluster
from orchestrator.planning.plan import make_plan
from orchestrator.process.forced_exit import LastResort
from workers.errors import ClusterLostError, DeadlineError, RehearsalError

_SLOW = (
    "The current node timed out during startup. This could happen because ...",
    "Timed out waiting for file /tmp/session/gcs_server_port_1",  # it was stopped
    "Failed to start GCS. Last 0 lines of error files: .",  # it ended
)


def _start(seconds: float) -> None:
    config = composed("+experiment=pocket")
    ray_cluster.start_cluster(config.cluster, make_plan(config).layout, seconds)


@pytest.mark.parametrize("words", _SLOW)
def test_a_start_that_stays_slow_ends_by_the_deadline(
    monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    tries: list[str] = []

    def slow(**options: Any) -> NoReturn:
        tries.append(options["_temp_dir"])
        raise Exception(words)

    monkeypatch.setattr(private_ray.ray, "init", slow)
    monkeypatch.setattr(private_ray.time, "monotonic", lambda: 40.0 * len(tries))
    with pytest.raises(DeadlineError, match="did not start within 100 s"):
        _start(100.0)
    assert len(tries) == 3  # after 40, 80 and 120 seconds
    assert len(set(tries)) == 3  # each in a folder of its own


def test_a_signal_while_ray_starts_is_heard_by_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    def init(**_: Any) -> NoReturn:
        ray._private.utils.set_sigterm_handler(lambda *_: heard.append("ray's"))
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("no cluster")

    monkeypatch.setattr(private_ray.ray, "init", init)
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("the run's"))
    try:
        with pytest.raises(RuntimeError, match="no cluster"):
            _start(100.0)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == ["the run's"]


def test_other_failures_of_ray_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def broken(**options: Any) -> NoReturn:
        tries.append(1)
        raise RuntimeError("version mismatch")

    monkeypatch.setattr(private_ray.ray, "init", broken)
    with pytest.raises(RuntimeError, match="version mismatch"):
        _start(100.0)
    assert tries == [1]


class _Resort(LastResort):
    """Does not end this process."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[RehearsalError] = []

    def fail(self, error: RehearsalError) -> None:  # type: ignore[override]
        self.errors.append(error)


@pytest.mark.parametrize("ends", [1, 3])
def test_a_raylet_that_ends_by_itself_while_it_starts_is_started_twice_more(
    monkeypatch: pytest.MonkeyPatch, ends: int
) -> None:
    tries: list[int] = []
    end = "import sys, time; time.sleep(1.5); sys.exit(1)"
    line = "[2026-01-01 00:00:00,000 E 1 2] (raylet) agent_manager.cc:9: agents were too slow\n"

    def init(**options: Any) -> None:
        tries.append(1)
        if len(tries) > ends:
            return
        logs = Path(options["_temp_dir"]) / "session_latest" / "logs"
        logs.mkdir(parents=True)
        (logs / "raylet.out").write_text(line + line.replace(" E ", " I ").replace("slow", "calm"))
        child = subprocess.Popen(["raylet", "-c", end], executable=sys.executable)
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)
        time.sleep(5.0)  # Ray notices later than the guard, which would end this process
        raise RuntimeError("the node is not there")

    monkeypatch.setattr(private_ray.ray, "init", init)
    monkeypatch.setattr(private_ray, "_is_ray", lambda process: True)
    resort = _Resort()
    if ends == 3:
        with pytest.raises(ClusterLostError, match='ended, after "agents were too slow"'):
            private_ray.start_private_ray(1, 100, 100.0, lambda _: None, resort)
        assert len(tries) == 3
        assert len(resort.errors) == 1  # the guard's, of the last try
    else:
        private_ray.start_private_ray(1, 100, 100.0, lambda _: None, resort).close()
        assert len(tries) == 2
        assert resort.errors == []


@dataclass(frozen=True)
class _Process:
    words: list[str]

    def cmdline(self) -> list[str]:
        if not self.words:
            raise psutil.AccessDenied(1)
        return self.words


def _raylet(session: str, address: str) -> _Process:
    return _Process(["/lib/raylet", f"--session_dir={session}", f"--gcs-address={address}"])


_STARTED = _raylet("/tmp/ray/session_1", "10.0.0.1:6379")
_OF_A_RUN = _raylet("/tmp/rehearsal-1000/ray-abcdefgh.tmp/session_1", "127.0.0.1:40001")
_OTHER = _Process(["python", "--gcs-address=10.0.0.9:6379"])


def _found(*processes: _Process) -> str:
    return joining.find_cluster(processes)  # type: ignore[arg-type]


def test_the_private_cluster_of_another_run_is_never_joined() -> None:
    assert _found(_Process([]), _OTHER, _OF_A_RUN, _STARTED) == "10.0.0.1:6379"
    with pytest.raises(ConnectionError, match="none runs on this machine"):
        _found(_OF_A_RUN, _OTHER)


def test_two_clusters_have_to_be_told_apart_by_their_address() -> None:
    assert _found(_STARTED, _STARTED) == "10.0.0.1:6379"
    with pytest.raises(ConnectionError, match=r"several .*: 10.0.0.1:6379, 10.0.0.2:6379"):
        _found(_STARTED, _raylet("/tmp/ray/session_2", "10.0.0.2:6379"))


def test_who_writes_into_the_folder_of_a_cluster_is_of_it(tmp_path: Path) -> None:
    hold = "import sys, time; f = open(sys.argv[1], sys.argv[2]); print(flush=True); time.sleep(60)"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "log").touch()
    (tmp_path / "folder beside").mkdir()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", hold, tmp_path / path, mode], stdout=subprocess.PIPE
        )
        for path, mode in (("folder/log", "a"), ("folder/log", "r"), ("folder beside/log", "w"))
    ]
    try:
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        found = [process.pid for process in private_ray._writers(tmp_path / "folder")]
        assert found == [children[0].pid]
    finally:
        for child in children:
            child.kill()
            child.communicate()

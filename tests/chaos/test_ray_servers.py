"""Whole runs that lose one of Ray's own servers: they go on, or end with the server's name."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks import chaos
from orchestrator.telemetry.metrics import comparable, read_metrics

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(600)]

SERVERS = {
    "gcs_server": "gcs_server",
    "raylet": "raylet",
    "dashboard_agent": "ray::DashboardAgent",
    "runtime_env_agent": "ray::RuntimeEnvAgent",
}
SETTINGS = ["stages=[pretrain]", "pretrain.steps=600", "run.checkpoint.every_steps=20"]


class Struck(chaos.Run):
    """A run, its descendants at the time of the strike, and what it leaves behind."""

    def __init__(self, folder: Path, temporary: Path, *more: str) -> None:
        self.temporary = temporary
        self.descendants: list[psutil.Process] = []
        super().__init__(folder, [*SETTINGS, *more])

    def server(self, name: str) -> psutil.Process | None:
        self.descendants = psutil.Process(self.process.pid).children(recursive=True)
        return self.named(name, self.descendants)

    @staticmethod
    def named(name: str, processes: list[psutil.Process]) -> psutil.Process | None:
        for process in processes:
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            if words and Path(words[0]).name == SERVERS[name]:
                return process
        return None

    def reached(self, moment: str) -> bool:
        if moment == "start":
            return True
        if moment == "stage":
            return any((self.folder / "state").glob("*-pretrain-[0-9]*[0-9]"))
        return (self.folder / "summary.json").exists()  # written before anything is ended

    def strike_server(self, name: str, number: str, moment: str) -> None:
        assert self.wait_for(lambda: self.reached(moment) and self.server(name) is not None)
        server = self.server(name)
        assert server is not None
        server.send_signal(getattr(signal, number))
        self.struck = time.monotonic()

    def left(self) -> list[str]:
        time.sleep(1)
        alive = [p.pid for p in self.descendants if p.is_running() and p.status() != "zombie"]
        folders = list(self.temporary.glob("rehearsal-*/ray-*"))
        return [*map(str, alive), *map(str, folders)]

    def text(self) -> str:
        return self.said.read_text(encoding="utf-8")


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # a run's scratch folders lie in it; short, since the paths of sockets must be
    folder = Path(f"/tmp/{secrets.token_hex(2)}")
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = chaos.Run(tmp_path_factory.mktemp("calm") / "run", SETTINGS)
    assert run.end() == 0
    return run.folder


def require_same(folder: Path, calm: Path) -> None:
    found, expected = (read_metrics(f / "metrics.jsonl") for f in (folder, calm))
    assert list(comparable(found)) == list(comparable(expected))
    assert chaos.weights(folder) == chaos.weights(calm)


@pytest.mark.parametrize("moment", ["start", "stage", "shutdown"])
@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize("name", SERVERS)
def test_a_lost_server_of_ray_does_not_hold_a_run_up(
    tmp_path: Path, temporary: Path, calm: Path, name: str, number: str, moment: str
) -> None:
    run = Struck(tmp_path / "run", temporary)
    run.strike_server(name, number, moment)
    code = run.process.wait(timeout=240)
    print(f"{name} {number} {moment}: exit {code} after {time.monotonic() - run.struck:.1f} s")  # noqa: T201
    assert run.left() == []
    if code == 0:
        require_same(run.folder, calm)
        assert (run.folder / "report.html").is_file()
        return
    assert code == 7
    assert moment != "shutdown", "everything was done"
    assert name in run.text()
    assert "memory" not in run.text().partition("error: ")[2]  # the plan has the word, too
    assert "resume" in run.text() or "start the same command again" in run.text()
    assert name in (run.folder / "error.log").read_text()
    if moment == "stage":
        assert json.loads((run.folder / "summary.json").read_text())["timing"]
        assert (run.folder / "report.html").is_file()


def test_a_run_that_lost_a_server_goes_on_by_the_same_command(
    tmp_path: Path, temporary: Path, calm: Path
) -> None:
    run = Struck(tmp_path / "run", temporary)
    run.strike_server("raylet", "SIGKILL", "stage")
    assert run.process.wait(timeout=240) == 7
    run.again()
    assert run.end() == 0
    require_same(run.folder, calm)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a process 1")
def test_a_run_in_a_container_is_not_ended_by_ray(tmp_path: Path, temporary: Path) -> None:
    class Contained(Struck):
        """A run whose parent is process 1, as `docker run --init` and `sh -c` make it."""

        before = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
                  '"$0" "$@"; exit $?')  # fmt: skip

    run = Contained(tmp_path / "run", temporary)
    run.strike_server("raylet", "SIGKILL", "stage")
    assert run.process.wait(timeout=240) == 7
    assert "raylet" in (run.folder / "error.log").read_text()
    assert run.left() == []


@pytest.fixture
def head(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[psutil.Process]]:
    """The processes of a cluster that somebody else started; its address is in RAY_ADDRESS."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    folder = temporary / "head"
    words = f"start --head --port={port} --temp-dir={folder} --num-cpus=1 --disable-usage-stats"
    more = (
        f"--include-dashboard=false --object-store-memory={128 << 20} --node-ip-address=127.0.0.1"
    )
    subprocess.run(
        [str(Path(sys.executable).with_name("ray")), *words.split(), *more.split()], check=True
    )
    everyone = psutil.process_iter(["cmdline"])
    started = [p for p in everyone if str(folder) in " ".join(p.info["cmdline"] or [])]
    started += [child for p in started for child in p.children(recursive=True)]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    yield started
    for process in started:
        if process.is_running():
            process.kill()
    psutil.wait_procs(started, timeout=10)


@pytest.mark.parametrize("moment", ["stage", "shutdown"])
@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_a_lost_server_of_a_joined_cluster_ends_the_run_within_its_patience(
    tmp_path: Path, temporary: Path, head: list[psutil.Process], name: str, number: str, moment: str
) -> None:
    joined = ["cluster.address=auto", "cluster.cpus_per_node=0.75"]
    run = Struck(tmp_path / "run", temporary, *joined, "run.supervision.probe_seconds=2")
    assert run.wait_for(lambda: run.reached(moment))
    server = run.named(name, head)
    assert server is not None
    server.send_signal(getattr(signal, number))
    struck = time.monotonic()
    code = run.process.wait(timeout=240)
    print(f"joined {name} {number} {moment}: exit {code} after {time.monotonic() - struck:.1f} s")  # noqa: T201
    assert code == (0 if moment == "shutdown" else 7)
    assert (run.folder / "summary.json").is_file()
    assert (run.folder / "report.html").is_file()
    if moment == "stage":
        assert f"{name} at " in run.text()
        assert "whose last checkpoint is" in run.text()

"""Only processes of the workers that are meant are ended, and at once."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from orchestrator.cluster.worker_processes import end_here
from workers.records.processes import RoleInfo

TITLE = "ray::_RewardActor.score_shards"


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    sleeping = [TITLE, "-c", "import time; print(flush=True); time.sleep(60)"]
    process = subprocess.Popen(sleeping, executable=sys.executable, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def info(pid: int, node: str = platform.node()) -> RoleInfo:
    return RoleInfo("reward", 0, pid, node, "cpu")


def test_one_that_is_stopped_ends_at_once(worker: subprocess.Popen[bytes]) -> None:
    os.kill(worker.pid, signal.SIGSTOP)
    end_here([info(worker.pid)], "_RewardActor")
    assert worker.wait(10) == -signal.SIGKILL
    end_here([info(worker.pid)], "_RewardActor")  # gone already


@pytest.mark.parametrize(("title", "node"), [
    ("_CriticActor", platform.node()), ("_RewardActor", "another"),
])  # fmt: skip
def test_others_are_spared(worker: subprocess.Popen[bytes], title: str, node: str) -> None:
    end_here([info(worker.pid, node)], title)
    assert worker.poll() is None

"""The recipe on a cluster of two Ray nodes that asks for a token: real Ray, vLLM and DeepSpeed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.config.cluster import RoleName
from orchestrator.telemetry.metrics import comparable, read_metrics

ROOT = Path(__file__).resolve().parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=2",
       "--disable-usage-stats", f"--object-store-memory={128 << 20}"]  # fmt: skip
# Roles apart have more cores each, and sums over more threads have another order.
ONE_THREAD = [f"cluster.roles.{role.value}.threads=1" for role in RoleName]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class Nodes:
    """Ray nodes of this machine that hold one token."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self.processes: list[subprocess.Popen[bytes]] = []
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        first = ["--head", f"--port={self.port}", "--node-ip-address=127.0.0.1",
                 "--include-dashboard=false", f"--temp-dir={self.folder}/ray"]  # fmt: skip
        rest = [f"--address={self.address}"]
        with (self.folder / f"node-{len(self.processes)}.out").open("wb") as out:
            self.processes.append(
                subprocess.Popen(
                    [*RAY, *(rest if self.processes else first)],
                    env=self.env,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            )

    def wait(self) -> None:
        """Wait until the head answers."""
        until = time.monotonic() + 60
        while not self.answers():
            assert time.monotonic() < until
            time.sleep(0.1)

    def answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    folder = Path(f"/tmp/{secrets.token_hex(2)}")  # short: it holds the paths of sockets
    folder.mkdir(mode=0o700)
    made = Nodes(folder)
    yield made
    for process in reversed(made.processes):
        process.terminate()
        process.wait(60)
    shutil.rmtree(folder, ignore_errors=True)


def recipe(folder: Path, env: dict[str, str], *overrides: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.run", "+experiment=pocket_tiny",
         f"run.dir={folder}", "rollout.transport=gloo", *ONE_THREAD, *overrides],
        cwd=ROOT, env=env, text=True, timeout=600,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_roles_apart_on_two_nodes_give_the_metrics_of_one(tmp_path: Path, nodes: Nodes) -> None:
    code, said = recipe(tmp_path / "one", dict(os.environ))
    assert code == 0, said[-3000:]
    nodes.start()
    nodes.wait()
    joined = ["cluster=cpu_nodes", f"cluster.address={nodes.address}"]
    without = os.environ | {"HOME": str(tmp_path)}  # a token may lie in the real one
    code, said = recipe(tmp_path / "refused", without, *joined)
    assert code == 2, said[-3000:]
    assert "asks for a token, and none is here" in said
    nodes.start()  # comes up while the driver plans
    code, said = recipe(tmp_path / "two", nodes.env, *joined)
    assert code == 0, said[-3000:]
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["ledger"]["generated"] == summary["ledger"]["trained"] > 0
    one, two = (
        list(comparable(read_metrics(tmp_path / n / "metrics.jsonl"))) for n in ("one", "two")
    )
    assert one == two

"""A metrics server that cannot be reached, or that never answers, costs a run nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(300)]
SINK_SECONDS = 5

_RUN = f"""
import json, sys, time
from pathlib import Path
from orchestrator.config.run import LoggerConfig
from orchestrator.run_files.folder import RunFolder
from orchestrator.telemetry.recorder import Telemetry
logger = LoggerConfig(wandb=True, wandb_mode="online", sink_seconds={SINK_SECONDS})
slowest, said = 0.0, []
folder = RunFolder(Path(sys.argv[1])).create()
with Telemetry(folder, logger, {{}}, warn=said.append) as metrics:
    until, step = time.monotonic() + 40, 0
    while time.monotonic() < until:
        began, step = time.monotonic(), step + 1
        metrics.record("ppo", step, {{"ppo/score_mean": 0.5}})
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.2)
    ending = time.monotonic()
closing = time.monotonic() - ending
print(json.dumps({{"steps": step, "slowest": slowest, "closing": closing, "said": said}}))
"""


@pytest.fixture(params=["refuses", "is silent"])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """An address of this machine behind which nobody, or nobody who answers, is."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "is silent":
            listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_wandb_that_is_not_there_delays_no_step(server: str, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    key = {"WANDB_BASE_URL": server, "WANDB_API_KEY": "0" * 40, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(tmp_path / "run")],
        env=os.environ | key, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["slowest"] < SINK_SECONDS
    assert found["closing"] < SINK_SECONDS + 1
    (said,) = found["said"]
    assert said.startswith("wandb is dropped")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == found["steps"]

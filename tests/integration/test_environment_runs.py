"""Runs with an environment on real Ray and vLLM: killed, and with workers that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from integration.test_resume import ROOT, traces

from orchestrator.telemetry.metrics import read_metrics

MODULE = """
import os, time
from workers.environments.turn import Turn
class Asking:
    def __init__(self, row, seed):
        self.row, self.seed, self.said = row, seed, []
    def step(self, text):
        self.said.append(text)
        if self.seed % 7 == 0 and len(self.said) == 2:
            raise ValueError("every seventh seed")
        if self.seed % 11 == 0:
            os._exit(3)
        if self.seed % 13 == 0:
            time.sleep(1000)
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
        return Turn("what is the fox ?", 0.1 * len(text.split()), len(self.said) == 3)
def make(row, seed):
    return Asking(row, seed)
"""
TALKS = (
    "stages=[pretrain,sft,ppo,evaluate]", "environment=function",
    "environment.factory=asking_environment:make", "reward=environment",
    "rollout.max_response_tokens=60", "environment.turn_tokens=12", "environment.step_seconds=5",
    "model.pocket.max_position_embeddings=128", "algorithm.iterations=3", "samples.all=true",
    "algorithm.prompts_per_iteration=24", "cluster.roles.environment.workers=2",
    "algorithm.evaluate_every=2",
)  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def start(folder: Path, *more: str, seconds: float = 0.0) -> subprocess.Popen[bytes]:
    folder.parent.mkdir(exist_ok=True)
    (folder.parent / "asking_environment.py").write_text(MODULE)
    path = os.pathsep.join([str(folder.parent), os.environ.get("PYTHONPATH", "")])
    always = [f"run.dir={folder}", "run.checkpoint.every_steps=1", "run.checkpoint.keep_last=100"]
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "orchestrator.run",
            "+experiment=pocket_tiny",
            *always,
            *TALKS,
            *more,
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "120", "STEP_SECONDS": str(seconds)},
        stdout=(folder.parent / "stdout").open("ab"),
        stderr=subprocess.STDOUT,
    )


def said(folder: Path) -> str:
    return (folder.parent / "stdout").read_text()[-3000:]


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    assert process.wait(timeout=900) == 0, said(folder)


def wait_for(process: subprocess.Popen[bytes], folder: Path, pattern: str) -> None:
    until = time.monotonic() + 600
    while not [p for p in folder.glob(pattern) if not p.suffix or p.suffix == ".json"]:
        assert process.poll() is None, said(folder)
        assert time.monotonic() < until, f"{pattern} never came"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calm") / "run"
    finish(start(folder), folder)
    return folder


def dropped(folder: Path) -> float:
    found = read_metrics(folder / "metrics.jsonl")
    return sum(r.value for r in found if r.name == "ppo/dropped/environment")


def test_faults_are_drops_and_the_ledger_is_exact(calm: Path) -> None:
    summary = json.loads((calm / "summary.json").read_text())
    ledger = summary["ledger"]
    assert ledger["generated"] == ledger["trained"] + ledger["dropped"] == 72
    assert 0 < dropped(calm) <= ledger["dropped"]
    assert (
        "environment raised ValueError: ValueError" in said(calm) + (calm / "run.log").read_text()
    )
    rows = [json.loads(line) for line in (calm / "samples" / "rollouts.jsonl").open()]
    assert any("user : what is the fox ? reply :" in row["response"] for row in rows)
    turns = [r.value for r in read_metrics(calm / "metrics.jsonl") if r.name == "ppo/turns_mean"]
    assert all(1.0 < value <= 3.0 for value in turns)
    gap = [r for r in read_metrics(calm / "metrics.jsonl") if r.name == "ppo/parity_max"]
    assert max(r.value for r in gap) < 1e-4


def test_a_run_that_is_killed_ends_in_the_same(calm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "often" / "run"
    for point in ("ppo-1", "ppo-2"):
        process = start(folder, "resume=auto")
        try:
            wait_for(process, folder, f"state/*-{point}")
        finally:
            process.kill()
            process.wait()
    finish(start(folder, "resume=auto"), folder)
    assert traces(folder) == traces(calm)


def test_killed_workers_and_processes_lose_no_sequence(calm: Path, tmp_path: Path) -> None:
    """A worker, then the process of the environments of another one, between and within steps."""
    folder = tmp_path / "struck" / "run"
    process = start(folder, seconds=0.05)
    wait_for(process, folder, "state/*-ppo-1")
    workers = json.loads((folder / "workers.json").read_text())
    first, second = [each["pid"] for each in workers if each["role"] == "environment"]
    for child in psutil.Process(second).children(recursive=True):
        if "workers.user_functions.child" in " ".join(child.cmdline()):
            child.send_signal(signal.SIGSTOP)  # the step in it is late, and it is ended
            break
    os.kill(first, signal.SIGKILL)
    finish(process, folder)
    summary = json.loads((folder / "summary.json").read_text())
    ledger = summary["ledger"]
    assert ledger["generated"] == ledger["trained"] + ledger["dropped"] == 72
    assert dropped(folder) - dropped(calm) in (0.0, 1.0)  # at most the one whose step was late
    losses = [json.loads(line) for line in (folder / "losses.jsonl").open()]
    assert "environment rank 0" in json.dumps(losses)

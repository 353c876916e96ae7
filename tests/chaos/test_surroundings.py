"""What a run leans on fails: a reward function, memory, the clock; real processes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import chaos
from benchmarks.chaos import Run
from orchestrator.metrics import comparable, read_metrics

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(1800)]
_GIB = 1 << 30
# The clock goes back and forth by an hour every 7 s, in every process.
_CLOCK = """
import time
real, steady = time.time, time.monotonic
time.time = lambda: real() + (3600 if int(steady() / 7) % 2 else -3600)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def models(home: Path) -> list[str]:
    return chaos.prepare(home)


@pytest.fixture(scope="module")
def calm(home: Path, models: list[str]) -> Path:
    return finished(Run(home / "calm", [*models, *_PPO]))


_PPO = ["algorithm.iterations=40", "run.checkpoint.every_steps=1",
        "run.supervision.max_restarts=20"]  # fmt: skip


def finished(run: Run) -> Path:
    assert run.end() == 0, run.said.read_text(encoding="utf-8")[-3000:]
    return run.folder


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def figures(folder: Path) -> list:
    return list(comparable(read_metrics(folder / "metrics.jsonl")))


def test_a_reward_function_that_fails_most_of_its_calls_costs_only_sequences(
    home: Path, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = home / "calls"
    monkeypatch.setenv("FLAKY_CALLS", str(calls))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    function = ["reward=function", "reward.function=flaky_reward:score"]
    rest = ["reward.function_seconds=2", "algorithm.iterations=6"]
    found = summary(finished(Run(home / "flaky", [*models, *function, *rest])))
    ledger, drops = found["ledger"], found["drops"]
    assert ledger["generated"] == 96 == ledger["trained"] + ledger["dropped"]
    assert ledger["trained"] > 0
    assert sum(drops.values()) == ledger["dropped"]
    assert calls.stat().st_size > 7  # asked again
    assert found["restarts"] == 0  # the function's process is nobody's worker


def test_a_worker_that_ray_ends_for_its_memory_comes_back(
    home: Path, models: list[str], calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = psutil.virtual_memory()
    used = memory.total - memory.available
    most = (used + 6 * _GIB) / memory.total
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{most:.3f}")
    run = Run(home / "memory", [*models, *_PPO])
    losses = run.folder / "losses.jsonl"
    run.wait_for(lambda: run.steps() >= 2)
    hog: list[bytearray] = []  # what else runs on the machine
    while run.running and not losses.exists():
        if len(hog) < 36:
            hog.append(bytearray(os.urandom(1 << 20)) * 256)
        time.sleep(0.05)
    hog.clear()
    assert figures(finished(run)) == figures(calm)
    assert "ran out of memory" in chaos.lines(losses)[0]["error"]


def test_a_run_on_a_clock_that_jumps_is_the_same(
    home: Path, models: list[str], calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "clock").mkdir()
    (home / "clock" / "sitecustomize.py").write_text(_CLOCK, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(home / "clock"))
    found = finished(Run(home / "jumping", [*models, *_PPO]))
    assert figures(found) == figures(calm)
    assert summary(found)["restarts"] == 0
    assert 0 < summary(found)["timing"]["total_seconds"] < 3000

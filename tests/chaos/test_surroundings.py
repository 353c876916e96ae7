"""What a run leans on fails: a reward function, memory, the clock; real processes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks import chaos
from benchmarks.chaos import Run
from orchestrator.telemetry.metrics import comparable, read_metrics

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


def test_responses_of_two_thousand_tokens_are_work_and_no_standstill(home: Path) -> None:
    long = [f"model.{name}.max_position_embeddings=4096" for name in ("pocket", "large")]
    long.append("model.pocket.tie_word_embeddings=false")
    made = finished(Run(home / "long", ["stages=[pretrain,sft,reward_model]", *long]))
    sft = made / "checkpoints" / "sft"
    never_ends(sft)
    run = Run(home / "answers", [
        *long, "stages=[ppo]", f"model.checkpoints.base={made}/checkpoints/base",
        f"model.checkpoints.sft={sft}",
        f"model.checkpoints.reward_model={made}/checkpoints/reward_model",
        "rollout.max_response_tokens=2000", "algorithm.prompts_per_iteration=8",
        "algorithm.iterations=2", "algorithm.evaluate_every=0",
        "run.supervision.stall_seconds=5", "run.supervision.probe_seconds=1",
    ])  # fmt: skip
    found = summary(finished(run))
    assert found["ledger"] == {"generated": 16, "trained": 16, "dropped": 0}
    assert found["restarts"] == 0
    lengths = [r.value for r in read_metrics(run.folder / "metrics.jsonl")
               if r.name == "ppo/response_tokens_mean"]  # fmt: skip
    assert min(lengths) > 1900


def never_ends(folder: Path) -> None:
    """Make a model's end token impossible: one feature is always on, and only speaks against it."""
    path = folder / "model.safetensors"
    weights = {name: np.array(value) for name, value in load_file(path).items()}
    end = json.loads((folder / "config.json").read_text(encoding="utf-8"))["eos_token_id"]
    weights["model.embed_tokens.weight"][:, 0] = 3.0
    weights["lm_head.weight"][:, 0] = 0.0
    weights["lm_head.weight"][end] = 0.0
    weights["lm_head.weight"][end, 0] = -20.0
    save_file(weights, path, metadata={"format": "pt"})
    (folder / "rehearsal.json").unlink()  # says that the file was changed

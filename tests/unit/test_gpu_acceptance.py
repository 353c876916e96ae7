"""The acceptance of a machine with GPUs: its commands are valid, and it runs on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import configuration
from benchmarks.gpu.checks import Bench, CannotRunError, ViolatedError
from benchmarks.gpu.product import recipes, runs, syncs
from orchestrator.config.cluster import RoleName
from orchestrator.config.schema import Config
from orchestrator.planning.placement import place_roles
from orchestrator.planning.plan import make_plan
from workers.pocket.model import create_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A machine with one H200, on which the recipe has left its models."""
    for name in recipes.MODELS:
        create_model(
            tmp_path / "recipe" / "checkpoints" / name, hidden_size=64, layers=1, heads=2,
            kv_heads=2, intermediate_size=64, max_position_embeddings=128,
            tie_word_embeddings=True, seed=0,
        )  # fmt: skip
    return Bench("cuda", False, tmp_path)


@pytest.fixture
def commands(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, list[str]]]:
    """By check: module and arguments of its first command."""
    said: list[tuple[str, list[str]]] = []

    def note(module: str, arguments: list[str], seconds: float, codes: object = ()) -> str:
        said.append((module, list(arguments)))
        raise ViolatedError("nothing runs here")

    monkeypatch.setattr(runs, "command", note)
    monkeypatch.setattr(recipes, "command", note)
    monkeypatch.setattr(runs, "memory_of", lambda: [143_771])
    monkeypatch.setattr(runs, "memory_in_use", lambda: [512])
    for check in recipes.CHECKS:
        with pytest.raises(ViolatedError, match="nothing runs here"):
            check.run(bench)
    return dict(zip((check.name for check in recipes.CHECKS), said, strict=True))


def planned(arguments: list[str]) -> Config:
    config = configuration(*(word for word in arguments if "=" in word))
    make_plan(config)
    return config


def test_commands_of_one_gpu_pass_the_plan_in_the_precision_they_are_for(commands) -> None:
    found = {
        name: planned(arguments)
        for name, (module, arguments) in commands.items()
        if module == "orchestrator.run"
    }
    precisions = {
        name: (c.trainer.precision.value, c.rollout.precision.value, c.rollout.enforce_eager)
        for name, c in found.items()
    }
    assert precisions == {
        "recipe in fp32": ("fp32", "fp32", True),
        "PPO in bf16": ("bf16", "bf16", False),
        "new weights in CUDA graphs": ("fp32", "fp32", False),
        "memory in turns": ("fp32", "fp32", True),
    }
    for name, config in found.items():
        assert config.cluster.roles.rollout.gpus == 0.2, name
        assert config.cluster.gpu_memory_gib == 140.4
        assert config.rollout.parity_tolerance == (0.3 if "bf16" in name else 0.001)


def test_engines_of_the_memory_check_sleep_in_its_second_run(bench, monkeypatch) -> None:
    keys = ["rollout.sleep=true", "trainer.rest_on_host=true"]
    seen: list[list[str]] = []

    def note(_bench: Bench, name: str, words: list[str], seconds: float) -> object:
        seen.append(words)
        if len(seen) == 2:
            raise ViolatedError("enough")
        return finished(bench.folder / "made", [5e-4])

    monkeypatch.setattr(recipes, "run", note)
    monkeypatch.setattr(runs, "memory_in_use", lambda: [512])
    with pytest.raises(ViolatedError, match="enough"):
        recipes.check_turns(bench)
    first, second = ([w for w in words if w in keys] for words in seen)
    assert (first, second) == ([], keys)
    monkeypatch.undo()
    monkeypatch.setattr(runs, "memory_of", lambda: [143_771])
    assert planned(["+experiment=pocket", *runs.place(bench), *seen[1]]).rollout.sleep


def finished(folder: Path, parity: list[float], **ledger: int) -> runs.Finished:
    """A run that is on record with these figures."""
    folder.mkdir()
    summary = {
        "ledger": {"generated": 8, "trained": 6, "dropped": 2} | ledger,
        "restarts": 0,
        "weight_sync": {"count": 3, "seconds_median": 0.5},
        "timing": {"total_seconds": 9.0},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [
        {"stage": stage, "step": n, "name": name, "value": value}
        for name, values in (("ppo/parity_max", parity), ("ppo/score_mean", [1.0, 2.0]))
        for n, value in enumerate(values)
        for stage in ("ppo",)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return runs.Finished(folder)


def test_a_run_is_sound_if_engines_are_near_and_no_sequence_is_missing(tmp_path: Path) -> None:
    found = recipes._sound(finished(tmp_path / "good", [1e-4, 9e-4]), 1e-3)
    assert found["parity_nats"] == 9e-4
    with pytest.raises(ViolatedError, match=r"are 0\.002 nats apart"):
        recipes._sound(finished(tmp_path / "far", [1e-4, 2e-3]), 1e-3)
    with pytest.raises(ViolatedError, match="the ledger"):
        recipes._sound(finished(tmp_path / "lost", [1e-4], trained=5), 1e-3)
    with pytest.raises(ViolatedError, match="nan nats apart"):
        recipes._sound(finished(tmp_path / "none", []), 1e-3)


def test_a_command_that_hangs_is_ended_and_one_that_fails_is_quoted(tmp_path, monkeypatch) -> None:
    (tmp_path / "own_command.py").write_text(
        "import sys, time\nprint('began', flush=True)\n"
        "time.sleep(60) if sys.argv[1] == 'hang' else sys.exit('no GPU is free')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ViolatedError, match="own_command hang did not end within 0 s"):
        runs.command("own_command", ["hang"], 0.4)
    with pytest.raises(ViolatedError, match=r"exit code 1: began \| no GPU is free"):
        runs.command("own_command", ["fail"], 30.0)
    assert runs.command("own_command", ["fail"], 30.0, codes=(1,)).startswith("began")


def test_ppo_is_skipped_where_the_recipe_has_failed(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match="the recipe made no base"):
        recipes.check_graphs(Bench("cpu", True, tmp_path))


def test_the_transfer_has_a_gpu_on_either_side(tmp_path: Path) -> None:
    config = syncs._config(Bench("cuda", False, tmp_path))
    assert config.rollout.transport == "nccl"
    layout = place_roles(config.cluster, {RoleName.policy, RoleName.rollout})
    assert layout.gpus == 2


@pytest.mark.slow  # minutes
def test_every_check_that_needs_no_gpu_passes_on_small_sizes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_acceptance", "--device", "cpu", "--quick",
         "--minutes", "14", "--out", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    (path,) = tmp_path.glob("*_gpu_acceptance.json")
    found = json.loads(path.read_text())
    statuses = {o["name"]: (o["status"], o["reason"]) for o in found["checks"]}
    reason = "on a CPU engines and trainers give no memory away"
    assert statuses.pop("memory in turns") == ("skipped", reason)
    assert {status for status, _ in statuses.values()} == {"passed"}, statuses
    assert done.returncode == 0

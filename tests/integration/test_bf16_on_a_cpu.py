"""PPO with trainers and engines in bf16 on a CPU, by one choice on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from benchmarks.peers.shapes import SHAPES, make_inputs, run_keys
from orchestrator.telemetry.metrics import read_metrics, series

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bf16")
    make_inputs(root / "inputs", SHAPES["tiny"], steps=4)
    keys = run_keys(SHAPES["tiny"], root / "inputs", steps=3)
    command = [sys.executable, "-m", "orchestrator.run", *keys, "trainer=zero1_bf16"]
    done = subprocess.run(
        [*command, f"run.dir={root / 'run'}"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root / "run"


def test_trainer_and_engine_differ_by_what_bf16_does(run: Path) -> None:
    records = read_metrics(run / "metrics.jsonl")
    differences = [value for _, value in series(records, "ppo", "ppo/parity_max")]
    assert len(differences) == 4
    assert all(1e-4 < difference < 0.05 for difference in differences)


def test_both_compute_in_bf16_and_all_sequences_are_trained_on(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["precision"] == config["rollout"]["precision"] == "bf16"
    ledger = json.loads((run / "summary.json").read_text())["ledger"]
    assert ledger == {"generated": 24, "trained": 24, "dropped": 0}


def test_the_saved_policy_is_bf16_and_learned(run: Path) -> None:
    before, after = (
        weights(folder) for folder in (run.parent / "inputs" / "sft", run / "checkpoints" / "ppo")
    )
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    assert any(not torch.equal(after[name], before[name].to(torch.bfloat16)) for name in after)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

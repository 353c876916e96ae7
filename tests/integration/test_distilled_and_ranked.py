"""Online DPO and distillation through real Ray, vLLM and DeepSpeed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from orchestrator.telemetry.metrics import read_metrics, series

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def finished(folder: Path, *overrides: str) -> Path:
    command = [sys.executable, "-m", "orchestrator.run", "+experiment=pocket_tiny"]
    done = subprocess.run(
        [*command, f"run.dir={folder}", "algorithm.evaluate_every=0", *overrides],
        cwd=ROOT, env=os.environ | {"COLUMNS": "120"}, capture_output=True, text=True, timeout=280,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(
        tmp_path_factory.mktemp("ranked") / "run", "stages=[pretrain,sft,reward_model,online_dpo]",
        "algorithm.prompts_per_iteration=4", "algorithm.samples_per_prompt=4",
        "preference.rankings_per_step=4",
    )  # fmt: skip


def test_online_dpo_trains_what_the_engines_sample(ranked: Path) -> None:
    records = read_metrics(ranked / "metrics.jsonl")
    losses = [value for _, value in series(records, "online_dpo", "dpo/loss")]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(math.log(2.0), abs=1e-4)
    kl = [value for _, value in series(records, "online_dpo", "ppo/kl_sequence")]
    assert kl[0] == pytest.approx(0.0, abs=1e-3)  # the policy is still the reference
    summary = json.loads((ranked / "summary.json").read_text())
    ledger = summary["ledger"]
    assert ledger["generated"] == ledger["trained"] + ledger["dropped"] == 32
    assert summary["weight_sync"]["parity_max_abs_logprob_diff"] <= 1e-4
    before, after = (
        load_file(ranked / "checkpoints" / name / "model.safetensors")
        for name in ("sft", "online_dpo")
    )
    assert any(not before[name].equal(after[name]) for name in before)


def test_a_student_that_is_its_own_teacher_learns_nothing(ranked: Path, tmp_path: Path) -> None:
    sft = ranked / "checkpoints" / "sft"
    same = finished(
        tmp_path / "run", "algorithm=distill", "stages=[ppo]", f"model.checkpoints.sft={sft}",
        f"model.checkpoints.teacher={sft}", "algorithm.old_logprobs=trainer",
    )  # fmt: skip
    kl = [v for _, v in series(read_metrics(same / "metrics.jsonl"), "ppo", "ppo/kl_sequence")]
    assert kl == [0.0, 0.0]
    student = load_file(same / "checkpoints" / "ppo" / "model.safetensors")
    teacher = load_file(sft / "model.safetensors")
    assert all(student[name].equal(teacher[name]) for name in teacher)

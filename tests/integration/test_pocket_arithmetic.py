"""GRPO by a verifier on the pocket world of sums: right answers become more frequent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1100)
def test_right_answers_rise_by_twenty_points(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orchestrator.run", "+experiment=pocket_arithmetic"]
    done = subprocess.run(
        [*command, f"run.dir={tmp_path / 'run'}"], cwd=ROOT, env=os.environ, capture_output=True,
        text=True, timeout=1080, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    models, prompts = summary["evaluation"]["models"], 512
    rates = [models[name]["correct_rate"] for name in ("sft", "ppo")]
    # 95 % interval of the difference of two shares of the same size
    error = 1.96 * sum(rate * (1 - rate) / prompts for rate in rates) ** 0.5
    gain = rates[1] - rates[0]
    sys.stderr.write(f"correct {rates}, gain {gain:.3f} +- {error:.3f}\n")
    assert gain - error > 0.2, (rates, error)

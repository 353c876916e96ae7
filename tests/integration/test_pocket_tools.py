"""A policy that may look facts up beats one that may not on animals that no text describes."""

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
def test_a_policy_that_may_ask_beats_one_that_may_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orchestrator.run", "+experiment=pocket_tools"]
    done = subprocess.run(
        [*command, f"run.dir={tmp_path / 'run'}"], cwd=ROOT, env=os.environ, capture_output=True,
        text=True, timeout=1080, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (gain,) = summary["environment_gains"]
    assert (gain["model"], gain["over"], gain["n"]) == ("ppo", "silent", 512)
    low, high = gain["ci95"]
    sys.stderr.write(f"gain {gain['difference']:.3f} [{low:.3f}, {high:.3f}]\n")
    assert low > 0.3, gain
    models = summary["evaluation"]["models"]
    assert models["ppo"]["correct_rate"] > 0.6, models
    assert models["silent"]["correct_rate"] < 0.4, models
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{gain['difference'] * 100:+.1f} points" in page
    ledger = summary["ledger"]
    assert ledger["generated"] == ledger["trained"] + ledger["dropped"]

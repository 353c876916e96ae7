"""Rounds on real engines: killed in the middle of the second, and with people between them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.telemetry.metrics import comparable, read_metrics
from workers.errors import WaitingError

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = (
    "stages=[pretrain,sft,label,reward_model,ppo,evaluate]", "iterate.rounds=2",
    "label.prompts=16", "label.heldout_prompts=12", "label.models=[sft,base]",
    "label.temperature=1.4", "reward_model.prompts_per_step=8", "run.checkpoint.every_steps=1",
)  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    folder.parent.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.run", *words],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "120"},
        stdout=(folder.parent / "stdout").open("ab"),
        stderr=subprocess.STDOUT,
    )


def first(folder: Path, *words: str) -> tuple[str, ...]:
    return ("+experiment=pocket_tiny", *ROUNDS, f"run.dir={folder}", "resume=auto", *words)


def finish(process: subprocess.Popen[bytes], folder: Path, code: int = 0) -> str:
    ended, said = process.wait(timeout=900), (folder.parent / "stdout").read_text()
    assert ended == code, said[-3000:]
    return said


def traces(folder: Path) -> dict[str, object]:
    """Everything that must not depend on interruptions."""
    summary = json.loads((folder / "summary.json").read_text())
    files = [*folder.glob("checkpoints/*/model.safetensors"), *folder.glob("state/rankings-*")]
    return {
        "metrics": comparable(read_metrics(folder / "metrics.jsonl")),
        "files": {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
                  for f in files},
        "tasks": [f.read_text() for f in sorted(folder.glob("samples/*_tasks.jsonl"))],
        **{name: summary[name] for name in ("ledger", "evaluation", "labels", "rounds", "stages")},
    }  # fmt: skip


def test_a_run_killed_in_its_second_round_ends_in_the_same(tmp_path: Path) -> None:
    once, often = tmp_path / "once" / "run", tmp_path / "often" / "run"
    finish(start(once, *first(once)), once)
    for point in ("label_2-1", "reward_model_2-1", "ppo_2-1"):
        process, until = start(often, *first(often)), time.monotonic() + 600
        try:
            while not [p for p in often.glob(f"state/*-{point}") if not p.suffix]:
                assert process.poll() is None, (often.parent / "stdout").read_text()[-3000:]
                assert time.monotonic() < until, f"{point} was never saved"
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    finish(start(often, *first(often)), often)
    ended = traces(once)
    assert traces(often) == ended
    rounds = json.loads((once / "summary.json").read_text())["rounds"]
    assert [each["policy"] for each in rounds] == ["ppo", "ppo_2"]
    assert rounds[1]["before"]["pairs"] == rounds[1]["after"]["pairs"] > 0
    ledger = json.loads((once / "summary.json").read_text())["ledger"]
    assert ledger["generated"] == ledger["trained"] + ledger["dropped"] == 2 * 2 * 16


def test_people_rank_between_the_parts_of_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "people" / "run"
    words: tuple[str, ...] = first(folder, "label.labeler=people")
    for stage in ("label", "label_2"):
        said = finish(start(folder, *words), folder, WaitingError.exit_code)
        assert f"{stage} waits for people" in said
        assert f"{stage} waits for people" in (folder / "waiting.txt").read_text()
        tasks = [json.loads(line) for line in (folder / f"samples/{stage}_tasks.jsonl").open()]
        lines = [
            task | {"ranks": [1 + len(text) % 3 for text in task["completions"]], "annotator": "a"}
            for task in tasks
        ]
        for line in lines:
            line["id"] = str(line["id"])  # as the export writes it
        export = folder / f"samples/{stage}_rankings.jsonl"
        assert str(export) in said
        export.write_text("".join(json.dumps(line) + "\n" for line in lines))
        words = (f"resume={folder}",)  # what the run prints
    finish(start(folder, *words), folder)
    assert not (folder / "waiting.txt").exists()
    summary = json.loads((folder / "summary.json").read_text())
    assert [each["policy"] for each in summary["rounds"]] == ["ppo", "ppo_2"]
    assert all(each["labeler"] == "people" for each in summary["labels"].values())

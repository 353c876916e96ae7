"""Runs that are killed, as a machine kills them, and go on: real Ray, vLLM and DeepSpeed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.telemetry.metrics import comparable, read_metrics

ROOT = Path(__file__).resolve().parents[2]
POINTS = ("pretrain-3", "sft-2", "reward_model-0", "reward_model-1", "ppo-1", "ppo_ptx-1")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def start(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "orchestrator.run", "+experiment=pocket_tiny"]
    always = [f"run.dir={folder}", "run.checkpoint.every_steps=1", "run.checkpoint.keep_last=100"]
    return subprocess.Popen(
        [*command, *always, *overrides],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "120"},
        stdout=(folder.parent / "stdout").open("ab"),
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    said = folder.parent / "stdout"
    assert process.wait(timeout=900) == 0, said.read_text()[-3000:]


def wait_for(process: subprocess.Popen[bytes], folder: Path, point: str) -> None:
    until = time.monotonic() + 600
    while not [p for p in folder.glob(f"state/*-{point}") if not p.suffix]:
        assert process.poll() is None, (folder.parent / "stdout").read_text()[-3000:]
        assert time.monotonic() < until, f"{point} was never saved"
        time.sleep(0.02)


def traces(folder: Path) -> dict[str, object]:
    """Everything that must not depend on interruptions."""
    summary = json.loads((folder / "summary.json").read_text())
    weights = sorted(folder.glob("checkpoints/*/model.safetensors"))
    names = ("rollouts.jsonl", "rankings.jsonl", "comparison.json")
    texts = [name for name in names if (folder / "samples" / name).exists()]
    return {
        "metrics": comparable(read_metrics(folder / "metrics.jsonl")),
        "weights": {w.parent.name: hashlib.sha256(w.read_bytes()).hexdigest() for w in weights},
        "texts": {name: (folder / "samples" / name).read_text() for name in texts},
        "ledger": summary["ledger"],
        "evaluation": summary["evaluation"],
        "syncs": summary["weight_sync"]["count"],
        "parity": summary["weight_sync"]["parity_max_abs_logprob_diff"],
        "stages": set(summary["timing"]["stages"]),
    }


@pytest.mark.parametrize(("zero", "ranks"), [(1, 1), (2, 2), (3, 2)])
def test_a_run_killed_in_every_stage_ends_in_the_same(
    tmp_path: Path, zero: int, ranks: int
) -> None:
    layout = [
        f"trainer.zero_stage={zero}",
        f"cluster.roles.policy.workers={ranks}",
        f"cluster.roles.critic.workers={ranks}",
    ]
    once, often = tmp_path / "once" / "run", tmp_path / "often" / "run"
    for folder in (once, often):
        folder.parent.mkdir()
    finish(start(once, *layout), once)
    for point in POINTS:
        process = start(often, *layout, "resume=auto")
        try:
            wait_for(process, often, point)
        finally:
            process.kill()
            process.wait()
    finish(start(often, *layout, "resume=auto"), often)
    assert traces(often) == traces(once)


def test_a_run_killed_in_two_variants_of_ppo_ends_in_the_same(tmp_path: Path) -> None:
    arms = [
        "stages=[pretrain,sft,reward_model,ppo,free,rloo,evaluate]",
        "variants.free.stage=ppo", "variants.free.set.algorithm.kl.coefficient=0",
        "variants.rloo.stage=ppo", "variants.rloo.algorithm=rloo",
        "variants.rloo.set.algorithm.prompts_per_iteration=4",
    ]  # fmt: skip
    once, often = tmp_path / "once" / "run", tmp_path / "often" / "run"
    for folder in (once, often):
        folder.parent.mkdir()
    finish(start(once, *arms), once)
    for point in ("free-1", "rloo-1"):
        process = start(often, *arms, "resume=auto")
        try:
            wait_for(process, often, point)
        finally:
            process.kill()
            process.wait()
    finish(start(often, *arms, "resume=auto"), often)
    ended = traces(once)
    assert traces(often) == ended
    weights, evaluated = ended["weights"], ended["evaluation"]
    assert isinstance(weights, dict)
    assert isinstance(evaluated, dict)
    assert {"ppo", "free", "rloo"} < {*weights}
    assert [*evaluated["models"]] == ["base", "sft", "ppo", "free", "rloo"]
    compared = {(p["model"], p["over"]) for p in evaluated["preferred"]}
    assert {("free", "ppo"), ("rloo", "free"), ("rloo", "sft")} < compared
    values = {r.stage for r in read_metrics(once / "metrics.jsonl") if r.name == "ppo/value_loss"}
    assert values == {"ppo", "free"}  # rloo has no critic


RANKED = ("algorithm.prompts_per_iteration=4", "algorithm.samples_per_prompt=4")
OTHERS = {
    "dpo": (
        ("dpo-0", "dpo-1", "ipo-1"),
        ("stages=[pretrain,sft,dpo,ipo,evaluate]", "preference.rankings_per_step=4",
         "variants.ipo.stage=dpo", "variants.ipo.set.preference.loss=ipo"),
    ),
    "online_dpo": (
        ("online_dpo-1", "second-1"),
        ("stages=[pretrain,sft,reward_model,online_dpo,second,evaluate]", *RANKED,
         "preference.rankings_per_step=2", "variants.second.stage=online_dpo",
         "variants.second.from=online_dpo", "variants.second.reference=sft"),
    ),
    "rejection_sampling": (
        ("rejection_sampling-1", "anew-1"),
        ("stages=[pretrain,sft,reward_model,rejection_sampling,anew,evaluate]",
         "rejection.prompts_per_iteration=8", "rejection.samples=4", "rejection.iterations=2",
         "rejection.sequences_per_step=4", "variants.anew.stage=rejection_sampling",
         "variants.anew.set.rejection.start=sft"),
    ),
    "distill": (
        ("sft_large-2", "taught-1", "again-1"),
        ("stages=[pretrain,sft,pretrain_large,sft_large,taught,again,evaluate]",
         "model.large.hidden_size=96", "model.large.layers=3", "model.large.heads=3",
         "model.large.kv_heads=3", "model.large.intermediate_size=128",
         "variants.sft_large.stage=sft", "variants.sft_large.from=large",
         *(f"variants.{name}.{key}" for name in ("taught", "again")
           for key in ("stage=ppo", "algorithm=distill", "reference=sft_large")),
         "variants.again.from=taught"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*OTHERS])
def test_a_run_killed_in_another_stage_ends_in_the_same(tmp_path: Path, kind: str) -> None:
    points, settings = OTHERS[kind]
    once, often = tmp_path / "once" / "run", tmp_path / "often" / "run"
    for folder in (once, often):
        folder.parent.mkdir()
    finish(start(once, *settings), once)
    for point in points:
        process = start(often, *settings, "resume=auto")
        try:
            wait_for(process, often, point)
        finally:
            process.kill()
            process.wait()
    finish(start(often, *settings, "resume=auto"), often)
    ended = traces(once)
    assert traces(often) == ended
    weights = ended["weights"]
    assert isinstance(weights, dict)
    made = {point.rpartition("-")[0] for point in points}
    assert made < {*weights}
    assert len({weights[name] for name in (*made, "sft")}) == len(made) + 1  # all have learnt


def test_sigterm_saves_a_step_and_the_newest_whole_checkpoint_goes_on(tmp_path: Path) -> None:
    once, often = tmp_path / "once" / "run", tmp_path / "often" / "run"
    for folder in (once, often):
        folder.parent.mkdir()
    finish(start(once), once)
    process = start(often, "run.grace_seconds=300")
    wait_for(process, often, "ppo-1")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=600) == 8
    newest = max(p for p in often.glob("state/*-*-*") if not p.suffix)
    file = next(file for file in newest.iterdir() if file.name != "manifest.json")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    finish(start(often, f"resume={often}"), often)
    assert traces(often) == traces(once)
    assert (
        f"skipped {newest.name}: {file.name} was altered" in (often.parent / "stdout").read_text()
    )


def test_batches_sampled_ahead_survive_a_kill(tmp_path: Path) -> None:
    ahead = ["algorithm.staleness=1", "algorithm.importance_cap=2.0", "algorithm.iterations=3"]
    once, often = tmp_path / "once" / "run", tmp_path / "often" / "run"
    for folder in (once, often):
        folder.parent.mkdir()
    finish(start(once, *ahead), once)
    for point in ("ppo-1", "ppo_ptx-2"):
        process = start(often, *ahead, "resume=auto")
        try:
            wait_for(process, often, point)
        finally:
            process.kill()
            process.wait()
        (saved,) = often.glob(f"state/*-{point}")
        assert [p.name for p in saved.glob("ahead-*")] == [
            f"ahead-{point.rpartition('-')[2]}-0.safetensors"
        ]
    finish(start(often, *ahead, "resume=auto"), often)
    assert traces(often) == traces(once)


def test_another_layout_goes_on_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, "stages=[pretrain]")
    wait_for(process, folder, "pretrain-3")
    process.kill()
    process.wait()
    moved = ["trainer.zero_stage=3", "cluster.roles.policy.workers=2"]
    finish(start(folder, "stages=[pretrain]", "resume=auto", *moved), folder)
    losses = [r.step for r in read_metrics(folder / "metrics.jsonl") if r.name == "pretrain/loss"]
    assert losses == list(range(8))
    assert "not bit-identical from here on" in (tmp_path / "stdout").read_text()

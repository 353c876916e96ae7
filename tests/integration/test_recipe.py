"""The whole recipe through real Ray, vLLM and DeepSpeed, as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from orchestrator.checkpoints.model_folder import require
from orchestrator.telemetry.metrics import MetricRecord, comparable, read_metrics, series

ROOT = Path(__file__).resolve().parents[2]
PPO_STAGES = ("ppo", "ppo_ptx")


def launch(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.run", "+experiment=pocket_tiny"]
    return subprocess.run(
        [*command, f"run.dir={folder}", *overrides],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def finished(folder: Path, *overrides: str) -> Path:
    done = launch(folder, *overrides)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("recipe") / "run")


@pytest.fixture(scope="module")
def summary(recipe: Path) -> dict:
    return json.loads((recipe / "summary.json").read_text())


def test_the_summary_has_every_promised_figure(summary: dict) -> None:
    reward_model = summary["stages"]["reward_model"]
    low, high = reward_model["heldout_pair_accuracy_ci95"]
    assert 0 <= low <= reward_model["heldout_pair_accuracy"] <= high <= 1
    assert reward_model["heldout_pairs"] > reward_model["heldout_prompts"] > 0
    assert 0 <= reward_model["calibration"]["error"] <= 1
    assert summary["evaluation"]["judging"]["judge"] == "gold"
    for model in ("base", "sft", "ppo", "ppo_ptx"):
        row = summary["evaluation"]["models"][model]
        assert row["web_perplexity"] > 1
        assert row["length_mean"] > 0
        assert {"gold_mean", "truthful_rate", "rude_rate"} <= row.keys()
    pairs = {(p["model"], p["over"]) for p in summary["evaluation"]["preferred"]}
    assert {("ppo", "sft"), ("ppo_ptx", "sft"), ("ppo", "base")} <= pairs
    for preferred in summary["evaluation"]["preferred"]:
        low, high = preferred["ci95"]
        assert 0 <= low <= preferred["rate"] <= high <= 1
        assert preferred["n"] == 16
    timing = summary["timing"]
    assert 0 < timing["first_optimizer_step_seconds"] < timing["total_seconds"]
    assert set(timing["stages"]) == {"pretrain", "sft", "reward_model", *PPO_STAGES, "evaluate"}
    assert {"generate", "policy_update", "weight_sync"} <= timing["ppo_phases"].keys()


def test_every_role_is_an_actor_of_its_own(summary: dict) -> None:
    roles = {role["role"] for role in summary["roles"]}
    assert roles == {"rollout", "reward", "reference", "policy", "critic"}
    pids = [role["pid"] for role in summary["roles"]]
    assert len(set(pids)) == len(pids)


def test_every_sync_leaves_engine_and_trainer_in_agreement(recipe: Path, summary: dict) -> None:
    # One sync before the first update and one after each of two iterations, for two PPO stages.
    assert summary["weight_sync"]["count"] == 6
    assert summary["weight_sync"]["parity_max_abs_logprob_diff"] <= 1e-4
    records = read_metrics(recipe / "metrics.jsonl")
    for stage in PPO_STAGES:
        parity = series(records, stage, "ppo/parity_max")
        assert [step for step, _ in parity] == [0, 1, 2]
        assert max(value for _, value in parity) <= 1e-4
        # so close that the engine's log-probabilities are PPO's old ones
        assert {value for _, value in series(records, stage, "ppo/engine_logprobs")} == {1.0}


def test_the_ledger_balances_every_step(recipe: Path, summary: dict) -> None:
    records = read_metrics(recipe / "metrics.jsonl")
    for stage in PPO_STAGES:
        generated = dict(series(records, stage, "ppo/generated"))
        trained = dict(series(records, stage, "ppo/trained"))
        dropped = dict(series(records, stage, "ppo/dropped"))
        assert generated == {1: 16, 2: 16}
        assert all(generated[s] == trained[s] + dropped[s] for s in generated)
    assert summary["ledger"] == {"generated": 64, "trained": 64, "dropped": 0}


def test_each_stage_leaves_a_folder_that_transformers_loads(recipe: Path) -> None:
    for name in ("base", "sft", "ppo", "ppo_ptx"):
        folder = require(str(recipe / "checkpoints" / name), name)
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = torch.tensor([tokenizer.encode("user : what does the fox eat ? reply :")])
        assert torch.isfinite(model(input_ids=ids).logits).all()
    folder = require(str(recipe / "checkpoints" / "reward_model"), "reward_model")
    reward = AutoModelForTokenClassification.from_pretrained(folder)
    assert reward.config.num_labels == 1


def test_training_moved_the_weights(recipe: Path) -> None:
    weights = {
        name: load_file(recipe / "checkpoints" / name / "model.safetensors")
        for name in ("base", "sft", "ppo", "ppo_ptx")
    }
    for name in ("base", "ppo", "ppo_ptx"):
        moved = max((weights[name][k] - w).abs().max() for k, w in weights["sft"].items())
        assert moved > 1e-5


def test_people_get_plots_a_report_and_the_resolved_configuration(recipe: Path) -> None:
    for plot in ("reward", "gold", "losses", "lengths", "perplexity", "calibration"):
        assert (recipe / "plots" / f"{plot}.png").stat().st_size > 10_000
    assert "<html" in (recipe / "report.html").read_text()[:500]
    assert "iterations: 2" in (recipe / "config.yaml").read_text()
    rankings = [json.loads(x) for x in (recipe / "samples" / "rankings.jsonl").open()]
    assert len(rankings) == 24
    assert all(4 <= len(r["completions"]) == len(r["ranks"]) <= 9 for r in rankings)


def test_the_same_seed_gives_the_same_metrics(recipe: Path, tmp_path: Path) -> None:
    again = finished(tmp_path / "again")
    first = comparable(read_metrics(recipe / "metrics.jsonl"))
    second = comparable(read_metrics(again / "metrics.jsonl"))
    assert first == second
    assert len(first) > 100


@pytest.mark.parametrize(("stage", "transport"), [(2, "shm"), (3, "gloo")])
def test_two_engines_and_two_ranks_do_what_one_does(
    recipe: Path, tmp_path: Path, stage: int, transport: str
) -> None:
    folder = finished(
        tmp_path / "run",
        "stages=[ppo_ptx]",
        f"trainer.zero_stage={stage}",
        f"rollout.transport={transport}",
        "cluster.roles.rollout.workers=2",
        "cluster.roles.policy.workers=2",
        "cluster.roles.critic.workers=2",
        "cluster.roles.reward.workers=2",
        "cluster.roles.reference.workers=2",
        f"model.checkpoints.sft={recipe / 'checkpoints' / 'sft'}",
        f"model.checkpoints.reward_model={recipe / 'checkpoints' / 'reward_model'}",
    )
    one = _ppo_metrics(read_metrics(recipe / "metrics.jsonl"))
    two = _ppo_metrics(read_metrics(folder / "metrics.jsonl"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert two[key] == pytest.approx(value, rel=2e-3, abs=2e-4), key
    expected = load_file(recipe / "checkpoints" / "ppo_ptx" / "model.safetensors")
    found = load_file(folder / "checkpoints" / "ppo_ptx" / "model.safetensors")
    assert expected.keys() == found.keys()
    worst = max(float((found[k] - w).abs().max()) for k, w in expected.items())
    assert worst < 1e-4
    roles = json.loads((folder / "summary.json").read_text())["roles"]
    assert len(roles) == 10


def _ppo_metrics(records: list[MetricRecord]) -> dict[tuple[int, str], float]:
    """Of the stage ppo_ptx; without what depends on earlier stages or on rounding alone."""
    left_out = ("ppo/policy_version", "ppo/parity", "ppo/mismatch")
    return {
        (r.step, r.name): r.value
        for r in comparable(records)
        if r.stage == "ppo_ptx" and not r.name.startswith(left_out)
    }


def test_a_diverging_loss_ends_the_run_and_keeps_what_was_finished(tmp_path: Path) -> None:
    done = launch(
        tmp_path / "run", "stages=[pretrain,sft]", "sft.optimizer.learning_rate=1e15",
        "sft.optimizer.max_grad_norm=1e15",
    )  # fmt: skip
    assert done.returncode == 6, done.stderr[-3000:]
    assert "not finite" in done.stderr
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr
    assert require(str(tmp_path / "run" / "checkpoints" / "base"), "base")
    assert (tmp_path / "run" / "error.log").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["timing"]["stages"]


def test_a_damaged_checkpoint_is_refused_before_anything_starts(
    recipe: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "sft"
    broken.mkdir()
    for file in (recipe / "checkpoints" / "sft").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    data = np.fromfile(broken / "model.safetensors", np.uint8)
    data[-1] ^= 1
    data.tofile(broken / "model.safetensors")
    done = launch(tmp_path / "run", "stages=[evaluate]", f"model.checkpoints.sft={broken}")
    assert done.returncode == 4, done.stderr[-3000:]
    assert "model.safetensors" in done.stderr


def _lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_stages_run_on_files(recipe: Path, tmp_path: Path) -> None:
    animals = ["fox", "owl", "bear", "crab", "wolf", "frog", "deer", "swan"]
    prompts = [f"user : repeat : {a} {b} ? reply :" for a in animals for b in animals if a != b]
    answers = [f"{p.split()[4]} {p.split()[5]} ." for p in prompts]
    pairs = list(zip(prompts, answers, strict=True))
    files = {
        "demonstrations": [{"prompt": p, "completion": a} for p, a in pairs],
        "rankings": [
            {"prompt": p, "completions": [a, "shut up .", "i do not know ."], "ranks": [1, 2, 2]}
            for p, a in pairs
        ],
        "prompts": [{"prompt": p} for p in prompts],
        "pretraining": [{"text": f"the {a} eats honey ."} for a in animals * 8],
    }
    given = [
        f"data.files.{name}={_lines(tmp_path / f'{name}.jsonl', rows)}"
        for name, rows in files.items()
    ]
    folder = finished(
        tmp_path / "run",
        "data=files",
        "model=checkpoint",
        "stages=[sft,reward_model,ppo_ptx,evaluate]",
        f"model.checkpoints.base={recipe / 'checkpoints' / 'base'}",
        "data.files.max_prompt_tokens=16",
        "data.files.max_completion_tokens=16",
        "rollout.engine=transformers",
        "reward.bridge=text",
        "logger=tensorboard",
        *given,
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["evaluation"]["models"]) == {"base", "sft", "ppo_ptx"}
    assert summary["evaluation"]["models"]["sft"]["gold_mean"] is None
    assert ("ppo_ptx", "sft") in {
        (p["model"], p["over"]) for p in summary["evaluation"]["preferred"]
    }
    records = read_metrics(folder / "metrics.jsonl")
    # Two of three pairs are ordered: the second and third completion tie.
    kept = [value for _, value in series(records, "reward_model", "reward_model/pairs_kept")]
    tied = [value for _, value in series(records, "reward_model", "reward_model/pairs_tied")]
    assert [k / 2 for k in kept] == tied
    assert summary["ledger"]["generated"] == 32
    assert list(folder.glob("tensorboard/*")) or list(folder.rglob("events.out.tfevents*"))


@pytest.mark.slow
@pytest.mark.parametrize("join", [False, True])
def test_weights_change_in_the_middle_of_sequences(
    recipe: Path, tmp_path: Path, *, join: bool
) -> None:
    folder = finished(
        tmp_path / "run",
        "stages=[ppo]",
        "algorithm.iterations=4",
        "algorithm.staleness=2",
        "algorithm.importance_cap=2.0",
        "algorithm.evaluate_every=0",
        "rollout.inflight_updates=true",
        f"rollout.join_running={join}",
        "rollout.overprovision=0.25",
        "rollout.stream_sequences=4",
        "rollout.max_response_tokens=60",
        "rollout.max_concurrent_sequences=4",
        f"model.checkpoints.sft={recipe / 'checkpoints' / 'sft'}",
        f"model.checkpoints.reward_model={recipe / 'checkpoints' / 'reward_model'}",
    )
    records = read_metrics(folder / "metrics.jsonl")
    figures = {
        name: [value for _, value in series(records, "ppo", f"ppo/{name}")]
        for name in ("generated", "trained", "dropped", "open", "lag_max", "parity_max")
    }
    assert figures["trained"] == [16.0] * 4
    assert figures["dropped"] == [4.0] * 4
    assert figures["open"] == [40.0, 40.0, 20.0, 0.0]
    assert figures["lag_max"][0] == 0.0
    assert 0.0 < max(figures["lag_max"]) <= 2.0
    assert max(figures["parity_max"]) <= 1e-4
    ledger = json.loads((folder / "summary.json").read_text())["ledger"]
    assert ledger == {"generated": 80, "trained": 64, "dropped": 16}

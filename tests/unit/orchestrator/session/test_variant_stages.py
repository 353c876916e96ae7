"""Variants of stages over fakes: names, seeds and inputs; interrupted anywhere, the same end."""

from __future__ import annotations

import copy
import hashlib
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from fakes.session import Run, small_config

from orchestrator.checkpoints.config_changes import compare_config
from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.evaluation import EvaluateConfig
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.training import OnNonFinite, RewardModelConfig
from orchestrator.planning.runs.expand import expand
from orchestrator.recipe import STAGES
from orchestrator.run_files.folder import RunFolder
from orchestrator.session.recovery import run_supervised

B0 = {"stage": "ppo", "set": {"algorithm.kl.coefficient": 0.0}}
SIZES = {"algorithm.prompts_per_iteration": 8, "algorithm.samples_per_prompt": 2}
LOO = {"stage": "ppo", "algorithm": "rloo", "from": "ppo", "set": SIZES}
RM2 = {"stage": "reward_model", "set": {"reward_model.prompts_per_step": 6}}
OF_RM2 = {"stage": "ppo", "reward_model": "rm2"}
AGAIN = {"stage": "ppo", "from": "ppo", "set": SIZES}


def _config(*stages: str, **variants: dict[str, Any]) -> Config:
    config = small_config()
    config.run.checkpoint.every_steps = 1
    config.run.checkpoint.keep_last = 100
    config.reward_model = RewardModelConfig(
        prompts=12, heldout_prompts=6, prompts_per_step=4, bias_demonstrations=8,
        optimizer=config.reward_model.optimizer,
    )  # fmt: skip
    config.evaluate = EvaluateConfig(prompts=8, web_documents=4, cloze_tasks=4)
    config.algorithm.evaluation_prompts = 4
    # the fakes' models are given: the base and the SFT model
    config.model.checkpoints.sft, config.model.checkpoints.base = "given", "given"
    config.model.checkpoints.reward_model = "given"
    config.variants, config.stages = variants, [*stages]
    return config


def _all() -> Config:
    stages = ("reward_model", "rm2", "ppo", "b0", "loo", "of_rm2", "evaluate")
    return _config(*stages, b0=B0, loo=LOO, rm2=RM2, of_rm2=OF_RM2)


def _go(run: Run) -> Run:
    runs = [each for each in expand(run.config) if each.name not in run.session.saves.finished]
    for each in runs:
        name = str(each.name)
        run.session.enter(each)
        run.hub.position.stage, run.hub.position.step = name, 0
        with run.telemetry.stage_span(name):
            STAGES[each.stage](run.session)
        run.session.finish(name, last=each is runs[-1])
    return run


def _traces(run: Run) -> dict[str, object]:
    """Everything that must not depend on interruptions."""
    findings, made = run.session.findings, sorted(run.folder.checkpoints.glob("*/*.safetensors"))
    return {
        "metrics": run.repeatable(),
        "weights": {p.parent.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in made},
        "rollouts": (run.folder.samples / "rollouts.jsonl").read_text(),
        "counters": run.session.counters(),
        "ledger": findings.ledger,
        "models": findings.models,
        "preferred": findings.preferred,
        "reward_models": (findings.reward_model, findings.reward_models),
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return _go(Run(tmp_path_factory.mktemp("undisturbed"), _all()))


@pytest.fixture(scope="module")
def saved(undisturbed: Run) -> list[str]:
    return [path.name for path in SavedRuns(undisturbed.folder).whole()]


def test_checkpoints_models_metrics_and_findings_have_the_names(
    undisturbed: Run, saved: list[str]
) -> None:
    assert [name.partition("-")[2] for name in saved] == [
        "reward_model-0", "reward_model-1", "reward_model-2", "reward_model-3",
        "rm2-1", "rm2-2",
        "ppo-1", "ppo-2", "b0-1", "b0-2", "loo-1", "loo-2", "of_rm2-1", "of_rm2-2",
        "evaluate-6",
    ]  # fmt: skip
    weights = _traces(undisturbed)["weights"]
    assert isinstance(weights, dict)
    assert {*weights} == {"reward_model", "rm2", "ppo", "b0", "loo", "of_rm2"}
    assert len({*weights.values()}) == len(weights)
    findings = undisturbed.session.findings
    assert [*findings.models] == ["base", "sft", "ppo", "b0", "loo", "of_rm2"]
    assert [*findings.reward_models] == ["rm2"]
    assert {r.stage for r in undisturbed.metrics() if r.name == "ppo/score_mean"} == {
        "ppo", "b0", "loo", "of_rm2",
    }  # fmt: skip
    values = {(r.stage, r.value) for r in undisturbed.metrics() if r.name == "ppo/kl_coefficient"}
    usual = undisturbed.config.algorithm.kl.coefficient
    assert values == {("ppo", usual), ("b0", 0.0), ("loo", usual), ("of_rm2", usual)}
    critics = {r.stage for r in undisturbed.metrics() if r.name == "ppo/value_loss"}
    assert critics == {"ppo", "b0", "of_rm2"}


def test_each_reads_the_products_that_it_names(undisturbed: Run) -> None:
    made = undisturbed.folder.checkpoints
    started = [Path(f["spec"].checkpoint) for f in undisturbed.hub.facts("policy.load")]
    assert [path.name for path in started] == ["sft", "sft", "ppo", "sft"]
    assert started[2] == made / "ppo"
    rewards = [Path(f["spec"].model.checkpoint) for f in undisturbed.hub.facts("reward.load")]
    assert [path.name for path in rewards[:4]] == ["reward_model"] * 3 + ["rm2"]


def test_a_second_round_goes_on_from_a_policy_and_is_compared_with_the_sft_model(
    tmp_path: Path,
) -> None:
    near = {"reference": "sft"}
    ranked = {"stage": "dpo", "from": "near"} | near
    stages = ("ppo", "near", "free", "ranked")
    run = _go(Run(tmp_path, _config(*stages, near=AGAIN | near, free=AGAIN, ranked=ranked)))
    spec = lambda name: [Path(f["spec"].checkpoint).name for f in run.hub.facts(name)]  # noqa: E731
    assert spec("policy.load") == ["sft", "ppo", "ppo", "near"]
    assert spec("reference.load") == ["sft", "sft", "ppo", "sft"]
    kl = {
        stage: next(r.value for r in run.metrics() if r.stage == stage and r.name == name)
        for name in ("ppo/kl_sequence",)
        for stage in ("ppo", "near", "free")
    }
    assert kl["ppo"] == pytest.approx(0.0, abs=1e-4)
    assert kl["free"] == pytest.approx(0.0, abs=1e-4)
    assert abs(kl["near"]) > 0.01
    loss = next(r.value for r in run.metrics() if r.stage == "ranked" and r.name == "dpo/loss")
    assert abs(loss - math.log(2.0)) > 1e-4  # the policy has already moved away


@pytest.mark.parametrize("number", range(15))
def test_going_on_from_any_checkpoint_ends_in_the_same(
    tmp_path: Path, undisturbed: Run, saved: list[str], number: int
) -> None:
    folder = RunFolder(shutil.copytree(undisturbed.folder.path, tmp_path / "run"))
    resumed = Run(tmp_path, _all(), SavedRuns(folder).read(folder.state / saved[number]))
    assert _traces(_go(resumed)) == _traces(undisturbed)


def test_seeds_follow_the_name_unless_they_are_those_of_another(tmp_path: Path) -> None:
    same, own = {"stage": "ppo", "seed_as": "ppo"}, {"stage": "ppo"}
    run = Run(tmp_path, _config("ppo", "same", "own", same=same, own=own))
    session = run.session
    found: dict[str, list[int]] = {}
    for each in expand(run.config):
        session.enter(each)
        name = session.name_of(StageName.ppo)
        found[name] = [session.seed(name, 0, 7, 1), session.seed("ppo", 0, 7, 1)]
    assert len({*found["ppo"], *found["same"]}) == 1
    assert len({*found["own"]}) == 1
    assert found["own"] != found["ppo"]
    _go(run)
    score = {
        name: [r.value for r in run.metrics() if r.stage == name and r.name == "ppo/score_mean"]
        for name in found
    }
    assert score["ppo"] == score["same"]
    assert score["ppo"] != score["own"]


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"b0": {"stage": "ppo", "set": {"algorithm.kl.coefficient": 0.1}}}, "refused"),
        ({"loo": LOO | {"seed_as": "ppo"}}, "exact"),
        ({"more": {"stage": "ppo"}}, "exact"),
    ],
)
def test_what_may_change_before_a_run_goes_on(
    undisturbed: Run, saved: list[str], change: dict[str, Any], verdict: str
) -> None:
    folder = undisturbed.folder
    at_b0 = SavedRuns(folder).read(folder.state / next(n for n in saved if n.endswith("b0-1")))
    now = copy.deepcopy(_all())
    now.variants = now.variants | change
    changes = compare_config(at_b0, now)
    found = {name for name in ("refused", "exact", "too_late") if getattr(changes, name)}
    assert found == {verdict}


def test_keys_of_a_stage_stay_once_a_variant_of_it_has_begun(
    undisturbed: Run, saved: list[str]
) -> None:
    folder = undisturbed.folder
    at_rm2 = SavedRuns(folder).read(folder.state / next(n for n in saved if n.endswith("rm2-1")))
    now = _all()
    now.algorithm.clip, now.reward_model.epochs = 0.1, 3
    changes = compare_config(at_rm2, now)
    assert [told.split()[0] for told in changes.exact] == ["algorithm.clip"]
    assert [told.split()[0] for told in changes.refused] == ["reward_model.epochs"]


def test_a_culprit_of_a_variant_is_left_out_as_in_its_stage(tmp_path: Path) -> None:
    config = _config("ppo", "b0", b0=B0)
    config.algorithm.on_non_finite = OnNonFinite.roll_back
    run = Run(tmp_path, config)
    ppo, b0 = expand(config)
    for each in (ppo, b0):
        name = str(each.name)
        run.session.enter(each)
        run.hub.position.stage, run.hub.position.step = name, 0
        if each is b0:  # its first held-out prompts come before what it trains on
            first = run.session.counters()["next_id"] + config.algorithm.evaluation_prompts
            run.hub.faults.nan_logprobs = {first + 3}
        run_supervised(run.session, STAGES[each.stage])
        run.session.finish(name, last=each is b0)
    totals = run.session.findings.ledger
    assert (totals.generated, totals.trained, totals.dropped) == (64, 63, 1)

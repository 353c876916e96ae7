"""The DPO stage over fake roles: what it learns from, its reference, and going on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from composing import composed
from fakes import ToyPolicy
from fakes.session import Run, small_config

from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.cluster import RoleName
from orchestrator.config.preference import PreferenceLoss
from orchestrator.config.schema import Config
from orchestrator.planning.plan import make_plan
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.rankings import load_rankings, save_rankings
from orchestrator.stages.dpo import dpo
from orchestrator.stages.reward_model import reward_model
from workers.errors import ConfigError, DataError
from workers.records.training import Ranking


def config() -> Config:
    config = small_config()
    config.preference.rankings_per_step = 8
    config.preference.optimizer.warmup_steps = 0
    return config


def trained(run: Run) -> list[Ranking]:
    return [
        ranking
        for facts in run.hub.facts("policy.train_preferences")
        for step in facts["steps"]
        for batch in step.micro_batches
        for ranking in batch
    ]


def test_the_first_loss_is_log_2_and_training_raises_the_agreement(tmp_path: Path) -> None:
    settings = config()
    settings.preference.epochs = 4
    run = Run(tmp_path, settings, policy=2, reference=2)
    dpo(run.session)
    assert run.series("dpo/loss")[0] == pytest.approx(0.6931472, abs=1e-6)
    assert run.series("dpo/loss")[-1] < 0.69
    assert run.series("dpo/pair_accuracy")[-1] > run.series("dpo/pair_accuracy")[0]
    assert len(run.series("dpo/heldout_pair_accuracy")) == 1
    before, after = (
        ToyPolicy.load(run.session.checkpoints[name]).weights for name in ("sft", "dpo")
    )
    assert not before.equal(after)


def test_the_reference_is_the_sft_model_asked_once(tmp_path: Path) -> None:
    settings = config()
    settings.preference.epochs = 3
    run = Run(tmp_path, settings, reference=2)
    dpo(run.session)
    (spec, *_) = (facts["spec"] for facts in run.hub.facts("reference.load"))
    assert spec.checkpoint == run.session.need("sft")
    asked = sum(len(batch) for f in run.hub.facts("reference.row_losses") for batch in f["batches"])
    rankings = load_rankings(run.folder.rankings)
    assert asked == sum(len(r.ranks) for r in rankings if r.pairs)
    sft = ToyPolicy.load(run.session.need("sft"))
    for ranking in trained(run)[:5]:
        assert ranking.reference is not None
        for row, found in zip(ranking.sequences.rows(), ranking.reference, strict=True):
            expected = sft.logprobs(row, ranking.prompt_length, 1.0).sum().item()
            assert found == pytest.approx(expected, rel=1e-5)


def test_without_a_reference_none_is_loaded(tmp_path: Path) -> None:
    settings = config()
    settings.preference.loss = PreferenceLoss.simpo
    settings.preference.beta = 2.0
    run = Run(tmp_path, settings)
    dpo(run.session)
    assert "reference.load" not in run.hub.names()
    assert all(ranking.reference is None for ranking in trained(run))


def test_the_rankings_of_the_reward_model_are_not_labeled_again(tmp_path: Path) -> None:
    run = Run(tmp_path, config())
    reward_model(run.session)
    run.session.finish("reward_model", last=False)
    calls = run.hub.names().count("rollout.generate")
    dpo(run.session)
    assert run.hub.names().count("rollout.generate") == calls
    seen = {
        (r.prompt_id, tuple(r.sequences.values.tolist()))
        for f in run.hub.facts("critic.train_rankings")
        for step in f["steps"]
        for batch in step.micro_batches
        for r in batch
    }
    assert {(r.prompt_id, tuple(r.sequences.values.tolist())) for r in trained(run)} == seen


def test_a_resumed_run_ends_in_the_same(tmp_path: Path) -> None:
    def started(place: Path, *resumed) -> Run:
        settings = config()
        settings.run.checkpoint.every_steps = 1
        return Run(place, settings, *resumed)

    whole = started(tmp_path / "whole")
    dpo(whole.session)
    saved = SavedRuns(whole.folder).steps()["dpo"][2]
    folder = RunFolder(shutil.copytree(whole.folder.path, tmp_path / "again" / "run"))
    again = started(tmp_path / "again", SavedRuns(folder).read(folder.state / saved.name))
    dpo(again.session)
    assert again.repeatable() == whole.repeatable()
    assert again.hub.names().count("rollout.generate") == 0


def test_rankings_that_do_not_say_where_their_prompts_end_are_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, config())
    reward_model(run.session)
    run.session.finish("reward_model", last=False)
    kept = load_rankings(run.folder.rankings)
    assert all(r.prompt_length == len(run.source.prompts("reward_model", r.prompt_id, 1)[0].tokens)
               for r in kept)  # fmt: skip
    save_rankings(run.folder.rankings, [replace(r, prompt_length=0) for r in kept])
    with pytest.raises(DataError, match="where their prompts end"):
        dpo(run.session)


def test_only_the_first_stage_that_reads_rankings_needs_engines() -> None:
    def roles(*stages: str, **more: str) -> dict[str, set[RoleName]]:
        words = [f"stages=[{','.join(stages)}]", *(f"{k}={v}" for k, v in more.items())]
        plan = make_plan(composed("+experiment=pocket", *words))
        return {stage.name.value: set(stage.roles) for stage in plan.stages}

    alone = roles("pretrain", "sft", "dpo")["dpo"]
    assert alone == {RoleName.rollout, RoleName.reference, RoleName.policy}
    after = roles("pretrain", "sft", "reward_model", "dpo")
    assert after["dpo"] == {RoleName.reference, RoleName.policy}
    assert RoleName.rollout in after["reward_model"]
    before = roles("pretrain", "sft", "dpo", "reward_model")
    assert before["reward_model"] == {RoleName.critic}


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["preference.margin=0.5"], "preference.margin"),
        (["preference.loss=ipo", "preference.label_smoothing=0.1"], "preference.label_smoothing"),
        (["preference.label_smoothing=0.5"], "preference.label_smoothing"),
        (["preference.label_smoothing=-0.1"], "preference.label_smoothing"),
        (["preference.robust=true"], "preference.label_smoothing"),
        (["preference.beta=0"], "preference.beta"),
    ],
)
def test_constants_that_do_not_belong_to_the_loss_are_refused(
    overrides: list[str], where: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        composed("+experiment=pocket_dpo", *overrides)
    assert caught.value.where == where


def test_numbers_of_pairs_are_those_of_the_labels(tmp_path: Path) -> None:
    run = Run(tmp_path, config())
    dpo(run.session)
    heldout = [r for r in load_rankings(run.folder.rankings)[24:] if r.pairs]
    facts = run.hub.facts("policy.evaluate_preferences")
    seen = [r for s in facts[0]["steps"] for batch in s.micro_batches for r in batch]
    assert sum(r.pairs for r in seen) == sum(r.pairs for r in heldout)
    assert np.isfinite(run.series("dpo/heldout_loss")).all()

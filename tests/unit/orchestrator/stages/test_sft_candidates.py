"""Which weights of SFT are published: the last, those of the lowest loss, of the highest score."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from composing import composed
from fakes import ToyPolicy
from fakes.session import Run, small_config

from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.cluster import RoleName
from orchestrator.config.engines import OptimizerConfig
from orchestrator.config.schema import Config
from orchestrator.config.training import SFTBest, SFTConfig
from orchestrator.planning.plan import make_plan, render_plan
from orchestrator.run_files.folder import RunFolder
from orchestrator.stages.selection.sft_candidates import demonstration_prompts
from orchestrator.stages.sft import sft
from workers.errors import ConfigError, RewardError

GIVEN = (
    "+experiment=sft", "model.checkpoints.base=B", "data.files.demonstrations=D", "sft.epochs=16",
    "rollout.max_prompt_tokens=1024",
)  # fmt: skip


def config(best: SFTBest, **settings: object) -> Config:
    optimizer = OptimizerConfig(warmup_steps=1)
    chosen = {"steps": 6, "keep_best_every": 2, "demonstrations_per_step": 10} | settings
    return dataclasses.replace(
        small_config(),
        sft=SFTConfig(keep_best=best, validation_demonstrations=12, optimizer=optimizer, **chosen),
    )


def weights(run: Run, name: str):
    return ToyPolicy.load(run.session.need(name)).weights


def steps(run: Run, name: str) -> list[int]:
    return [r.step for r in run.metrics() if r.name == name]


@pytest.mark.parametrize(
    ("losses", "best"), [([3.0, 1.0, 2.0], 4), ([1.0, 1.0, 1.0], 2), ([3.0, 2.0, 1.0], 6)]
)
def test_the_weights_of_the_lowest_loss_are_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: list[float], best: int
) -> None:
    given = iter(losses)
    monkeypatch.setattr(
        "orchestrator.stages.selection.sft_candidates.supervised.mean_loss",
        lambda *_: next(given),
    )
    run = Run(tmp_path, config(SFTBest.loss))
    sft(run.session)
    assert steps(run, "sft/validation_loss") == [2, 4, 6]
    assert run.series("sft/validation_loss") == losses
    assert weights(run, "sft").equal(weights(run, f"sft_step_{best}"))
    others = {2, 4, 6} - {best}
    assert not any(weights(run, "sft").equal(weights(run, f"sft_step_{n}")) for n in others)
    assert "rollout.generate" not in run.hub.names()


def test_the_reward_model_chooses_by_sampled_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, config(SFTBest.reward_model))
    said: list[float] = []
    score = run.roles.reward.score_batch

    def spy(batch, asked):
        answer = score(batch, asked)
        found = answer.result()
        said.append(float(np.mean(found.values, dtype=np.float64)))
        assert len(found.values) == 12
        return answer

    monkeypatch.setattr(run.roles.reward, "score_batch", spy)
    sft(run.session)
    assert run.series("sft/heldout_score_mean") == pytest.approx(said)
    assert steps(run, "sft/heldout_score_mean") == [2, 4, 6]
    best = (2, 4, 6)[int(np.argmax(said))]
    assert weights(run, "sft").equal(weights(run, f"sft_step_{best}"))
    loaded = [f["spec"].model.checkpoint for f in run.hub.facts("reward.load")]
    assert set(loaded) == {run.session.need("reward_model")}


def test_answers_are_sampled_from_the_compared_weights(tmp_path: Path) -> None:
    run = Run(tmp_path, config(SFTBest.reward_model))
    sft(run.session)
    served = [f["spec"].checkpoint for f in run.hub.facts("rollout.start")]
    served += [f["path"] for f in run.hub.facts("rollout.load_checkpoint")]
    assert served == [run.session.need(f"sft_step_{n}") for n in (2, 4, 6)]
    prompts = demonstration_prompts(run.source, 12)
    asked = [[r.prompt_tokens for r in f["requests"]] for f in run.hub.facts("rollout.generate")]
    assert asked == [[p.tokens for p in prompts]] * 3


def test_prompts_are_what_is_before_the_first_trained_token(tmp_path: Path) -> None:
    run = Run(tmp_path)
    rows = run.source.demonstrations("heldout", 0, 5)
    for number, prompt in enumerate(demonstration_prompts(run.source, 5)):
        tokens, targets = rows.tokens.row(number).tolist(), rows.targets.row(number).tolist()
        n = len(prompt.tokens)
        assert list(prompt.tokens) == tokens[:n]
        assert targets[: n + 1] == [False] * n + [True]


@pytest.mark.parametrize("best", [SFTBest.loss, SFTBest.reward_model])
def test_measuring_does_not_change_what_is_trained(tmp_path: Path, best: SFTBest) -> None:
    measured, plain = Run(tmp_path / "a", config(best)), Run(tmp_path / "b", config(SFTBest.none))
    sft(measured.session)
    sft(plain.session)
    assert measured.series("sft/loss") == plain.series("sft/loss")
    assert weights(measured, "sft_step_6").equal(weights(plain, "sft"))


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_a_resumed_run_ends_in_the_same(tmp_path: Path, after: int) -> None:
    settings = config(SFTBest.reward_model)
    settings.run.checkpoint.every_steps = 1
    settings.run.checkpoint.keep_last = 9
    whole = Run(tmp_path / "whole", settings)
    sft(whole.session)
    saved = SavedRuns(whole.folder).steps()["sft"][after]
    folder = RunFolder(shutil.copytree(whole.folder.path, tmp_path / "again" / "run"))
    again = Run(tmp_path / "again", settings, SavedRuns(folder).read(folder.state / saved.name))
    sft(again.session)
    assert again.repeatable() == whole.repeatable()
    assert weights(again, "sft").equal(weights(whole, "sft"))


def test_the_weights_after_each_pass_are_compared(tmp_path: Path, monkeypatch) -> None:
    run = Run(tmp_path, config(SFTBest.loss, epochs=3, keep_best_every=0))
    monkeypatch.setattr(run.source, "demonstration_count", lambda: 17)
    sft(run.session)
    # 17 rows in steps of 10: the passes end within steps 2, 4 and 6
    assert steps(run, "sft/validation_loss") == [2, 4, 6]


def test_an_answer_without_a_score_ends_the_stage(tmp_path: Path) -> None:
    run = Run(tmp_path, config(SFTBest.reward_model))
    run.hub.faults.failed_rewards = lambda i: "not finite" if i == 1 else ""
    with pytest.raises(RewardError, match="1 of 12 answers got no score: not finite"):
        sft(run.session)


def test_the_plan_needs_a_reward_model_that_is_given() -> None:
    with pytest.raises(ConfigError, match="'reward_model'"):
        make_plan(composed(*GIVEN, "sft.keep_best=reward_model"))
    given = (*GIVEN, "sft.keep_best=reward_model", "model.checkpoints.reward_model=R")
    plan = make_plan(composed(*given))
    (stage,) = plan.stages
    assert stage.needs == ("base", "reward_model")
    assert set(stage.roles) == {RoleName.rollout, RoleName.reward, RoleName.policy}
    assert "weights after each pass stay in checkpoints/sft_step_N" in render_plan(plan)
    (alone,) = make_plan(composed(*GIVEN, "sft.keep_best=loss")).stages
    assert alone.roles == (RoleName.policy,)
    with pytest.raises(ConfigError, match="come from") as caught:
        make_plan(composed(*given, "reward=function", "reward.function=own_judges:longer"))
    assert caught.value.where == "sft.keep_best"


def test_steps_without_passes_need_an_interval() -> None:
    with pytest.raises(ConfigError, match="counts no passes") as caught:
        composed("+experiment=pocket", "sft.keep_best=loss")
    assert caught.value.where == "sft.keep_best_every"
    make_plan(composed("+experiment=pocket", "sft.keep_best=loss", "sft.keep_best_every=50"))

"""What PPO brings up, waits for and notes on its way."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes.session import Run, small_config
from test_ppo_loop import require_turns

from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.cluster import RoleName
from orchestrator.config.schema import Config
from orchestrator.config.training import KLControl
from orchestrator.run_files.folder import RunFolder
from orchestrator.session.saves import Saves
from orchestrator.stages.ppo import loop as stage
from orchestrator.stages.ppo.loop import ppo, ppo_ptx
from orchestrator.stages.ppo.record import mean_kl
from workers.errors import BrokenCheckpointError, CheckpointError, KLLimitError, NonFiniteError


def config(**algorithm: Any) -> Config:
    made = small_config()
    made.algorithm = replace(made.algorithm, **algorithm)
    return made


def test_the_way_to_the_first_iteration_is_told_by_its_parts(tmp_path: Path) -> None:
    run = Run(tmp_path)
    ppo(run.session)
    assert list(run.session.findings.start) == [
        "earlier_stages", "actors", "engines_and_models", "first_sync", "first_iteration",
    ]  # fmt: skip
    assert set(RoleName) - {RoleName.environment} in map(
        set, run.roles.brought_up
    )  # at the same time


@pytest.mark.parametrize("role", ["policy", "critic", "reference", "reward"])
def test_a_model_that_cannot_be_loaded_ends_the_stage(tmp_path: Path, role: str) -> None:
    run = Run(tmp_path)
    run.hub.faults.raising[f"{role}.load"] = CheckpointError("no such folder")
    with pytest.raises(CheckpointError, match="no such folder"):
        ppo(run.session)
    assert "rollout.generate" not in run.hub.names()


def test_the_first_step_is_that_of_the_policy_or_else_of_the_critic(tmp_path: Path) -> None:
    for name, warmup, iterations in (("critic.update", 0, 1), ("policy.update", 1, 2)):
        run = Run(tmp_path / name, config(critic_warmup_iterations=warmup, iterations=iterations))
        run.hub.faults.raising[name] = NonFiniteError("the loss is not finite")
        with pytest.raises(NonFiniteError):
            ppo(run.session)
        assert run.session.findings.first_step_seconds is not None


def test_engines_are_compared_on_the_first_held_out_prompts(tmp_path: Path) -> None:
    run = Run(tmp_path)
    ppo(run.session)
    prompts = [p.tokens for p in run.source.prompts("heldout", 0, 2)]
    assert [f["prompts"] for f in run.hub.facts("rollout.probe")] == [prompts] * 3


def test_trainers_rest_after_an_iteration_without_a_reward(tmp_path: Path) -> None:
    settings = config(iterations=2, evaluate_every=0)
    settings.rollout.sleep = True
    run = Run(tmp_path, settings)
    run.hub.faults.failed_rewards = lambda _: "down" if run.hub.calls["reward.score"] == 1 else ""
    ppo(run.session)
    first, second = (
        n for n, e in enumerate(run.hub.events) if (e.kind, e.name) == ("start", "rollout.generate")
    )
    names = [e.name for e in run.hub.events[first:second] if e.kind == "result"]
    for role in ("policy", "critic"):
        assert names.index(f"{role}.rest") > names.index("critic.values")


def test_engines_sleep_while_held_out_answers_are_rewarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_config()
    settings.rollout.sleep = True
    run = Run(tmp_path, settings)
    monkeypatch.setattr(run.source, "gold", lambda prompts, texts: None)
    ppo(run.session)
    require_turns(run)


def test_a_checkpoint_under_way_is_settled_in_every_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    settled: list[int] = []
    settle = Saves.settle

    def noted(saves: Saves) -> None:
        settled.append(run.hub.calls["reward.score"])
        settle(saves)

    monkeypatch.setattr(Saves, "settle", noted)
    ppo(run.session)
    assert settled[:2] == [0, 1]  # while the engines sample, before anything is scored


def test_seconds_of_iterations_are_those_that_passed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    began = time.monotonic()
    ppo(run.session)
    assert 0 < sum(run.series("ppo/step_seconds")) <= time.monotonic() - began


@pytest.mark.parametrize(
    ("limit", "near"), [(0.0, True), (1.5, True), (1.49, False), (2.0, True), (1.0, False)]
)
def test_the_policy_may_be_as_far_from_its_reference_as_the_limit(limit: float, near: bool) -> None:
    settings = small_config()
    settings.algorithm.kl.limit = limit
    session: Any = SimpleNamespace(config=settings, position="here")
    shards = [np.array([0.5, 1.0]), np.array([3.0])]  # 1.5 nats per sequence
    experience: Any = SimpleNamespace(summaries=[SimpleNamespace(kl=kl) for kl in shards])
    if near:
        stage.require_near(session, mean_kl(experience))
        return
    with pytest.raises(KLLimitError, match=rf"1\.50 nats .* allowed are {limit:g}"):
        stage.require_near(session, mean_kl(experience))


def resumed(path: Path, run: Run) -> Run:
    """A second session that continues after the first iteration of `run`."""
    folder = RunFolder(shutil.copytree(run.folder.path, path / "run"))
    (first, *_) = SavedRuns(folder).whole()
    return Run(path, run.config, SavedRuns(folder).read(first))


@pytest.mark.parametrize(
    ("control", "kl", "says"),
    [
        (KLControl.adaptive, None, "it holds no KL coefficient in force, .*control=adaptive"),
        (KLControl.fixed, {"value": 0.25}, "it holds a KL coefficient in force, .*control=fixed"),
    ],
)
def test_a_checkpoint_whose_kl_coefficient_is_of_another_control_is_refused(
    tmp_path: Path, control: KLControl, kl: dict[str, float] | None, says: str
) -> None:
    settings = config(iterations=2, evaluate_every=0)
    settings.algorithm.kl.control = control
    settings.run.checkpoint.every_steps = 1
    run = Run(tmp_path, settings)
    ppo(run.session)
    runs = SavedRuns(run.folder)
    (first, *_) = runs.whole()
    saved = runs.read(first)
    known = saved.progress | {"own": saved.progress["own"] | {"kl": kl}}
    facts = {"config": saved.config, "versions": saved.versions}
    path = runs.publish(runs.begin("ppo", 1), [], known, facts, [])
    with pytest.raises(BrokenCheckpointError, match=says) as caught:
        runs.read(path)
    assert caught.value.where == str(path)


def test_a_resumed_stage_goes_on_with_what_both_trainers_were(tmp_path: Path) -> None:
    settings = config(iterations=3, evaluate_every=0)
    settings.run.checkpoint.every_steps = 1
    settings.rollout.sleep = True
    run = Run(tmp_path / "first", settings)
    ppo_ptx(run.session)
    again = resumed(tmp_path / "again", run)
    ppo_ptx(again.session)
    names = [e.name for e in again.hub.events if e.kind == "result"]
    begun = names.index("rollout.receive_weights")
    for role in ("policy", "critic"):
        restored = names.index(f"{role}.restore")
        assert restored < names.index(f"{role}.rest", restored) < begun
    assert again.session.findings.syncs == run.session.findings.syncs
    for role in ("policy", "critic"):
        broken = resumed(tmp_path / role, run)
        broken.hub.faults.raising[f"{role}.restore"] = CheckpointError("a file is damaged")
        with pytest.raises(CheckpointError, match="a file is damaged"):
            ppo_ptx(broken.session)
        assert "rollout.generate" not in broken.hub.names()

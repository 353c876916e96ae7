"""Every stage, interrupted at every step and continued by a new session, ends as it would have."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.mirrors import Faults, FaultyMemory
from fakes.session import Run, small_config
from fakes.toy import ToyPolicy

from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.evaluation import EvaluateConfig
from orchestrator.config.schema import Config
from orchestrator.config.training import KLControl, PretrainConfig, RewardModelConfig, SFTConfig
from orchestrator.mirror.background import Mirror
from orchestrator.mirror.claim import find_claim
from orchestrator.mirror.restoring import restore
from orchestrator.mirror.store import Store
from orchestrator.run_files.folder import RunFolder
from orchestrator.session.session import Session
from orchestrator.stages.evaluate import evaluate
from orchestrator.stages.ppo.loop import ppo, ppo_ptx
from orchestrator.stages.pretrain import pretrain
from orchestrator.stages.reward_model import reward_model
from orchestrator.stages.sft import sft
from workers.errors import RoleDiedError, StoppedError

Stage = Callable[[Session], None]
STAGES: dict[str, Stage] = {
    "sft": sft,
    "reward_model": reward_model,
    "ppo": ppo,
    "ppo_ptx": ppo_ptx,
    "evaluate": evaluate,
}


def _config() -> Config:
    config = small_config()
    config.run.checkpoint.every_steps = 1
    config.run.checkpoint.keep_last = 100
    config.algorithm.iterations = 3
    config.algorithm.kl.control = KLControl.adaptive
    config.algorithm.kl.horizon = 100
    config.algorithm.ptx.documents_per_episode = 0.5
    config.sft = SFTConfig(steps=4, demonstrations_per_step=4, validation_demonstrations=8)
    config.reward_model = RewardModelConfig(
        prompts=12, heldout_prompts=6, prompts_per_step=4, bias_demonstrations=8,
        optimizer=config.reward_model.optimizer,
    )  # fmt: skip
    config.evaluate = EvaluateConfig(prompts=8, web_documents=4, cloze_tasks=4)
    config.algorithm.evaluation_prompts = 4
    return config


def _go(run: Run, *only: str) -> None:
    names = [name for name in only or STAGES if name not in run.session.saves.finished]
    for name in names:
        run.hub.position.stage, run.hub.position.step = name, 0
        with run.telemetry.stage_span(name):
            STAGES[name](run.session)
        run.session.finish(name, last=name == names[-1])


def _traces(run: Run) -> dict[str, object]:
    """Everything that must not depend on interruptions."""
    folder = run.folder
    findings = run.session.findings
    names = ("sft", "reward_model", "ppo", "ppo_ptx")
    return {
        "metrics": run.repeatable(),
        "weights": {n: _sha(folder.checkpoints / n / "model.safetensors") for n in names},
        "rollouts": (folder.samples / "rollouts.jsonl").read_text(),
        "rankings": (folder.samples / "rankings.jsonl").read_text(),
        "comparison": (folder.samples / "comparison.json").read_text(),
        "counters": run.session.counters(),
        "ledger": findings.ledger,
        "models": findings.models,
        "preferred": findings.preferred,
        "syncs": findings.syncs,
        "parity": findings.parity_max,
        "reward_model": findings.reward_model,
    }


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("undisturbed"), _config())
    _go(run)
    return run


@pytest.fixture(scope="module")
def saved(undisturbed: Run) -> list[str]:
    return [path.name for path in SavedRuns(undisturbed.folder).whole()]


def test_every_step_is_saved(saved: list[str]) -> None:
    # Steps in between, and the end of each stage; the labels of the reward model as its step 0.
    assert [name.partition("-")[2] for name in saved] == [
        "sft-1", "sft-2", "sft-3", "sft-4",
        "reward_model-0", "reward_model-1", "reward_model-2", "reward_model-3",
        "ppo-1", "ppo-2", "ppo-3",
        "ppo_ptx-1", "ppo_ptx-2", "ppo_ptx-3",
        "evaluate-4",
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(15))
def test_going_on_from_any_checkpoint_ends_in_the_same(
    tmp_path: Path, undisturbed: Run, saved: list[str], number: int
) -> None:
    folder = RunFolder(shutil.copytree(undisturbed.folder.path, tmp_path / "run"))
    resumed = Run(tmp_path, _config(), SavedRuns(folder).read(folder.state / saved[number]))
    _go(resumed)
    assert _traces(resumed) == _traces(undisturbed)
    done = resumed.hub.names()
    finished = [name.rpartition("-")[0].partition("-")[2] for name in saved[: number + 1]]
    if "reward_model" in finished:
        asked = [r for f in resumed.hub.facts("rollout.generate") for r in f["requests"]]
        assert all(len(r.ids) < 4 for r in asked)  # nothing is sampled and labeled again
    if finished[-1] == "evaluate":
        assert done == []


def test_a_finished_run_goes_on_with_appended_stages_as_if_asked_for_them_at_once(
    tmp_path: Path, undisturbed: Run
) -> None:
    shorter = Run(tmp_path / "shorter", _config())
    _go(shorter, "sft", "reward_model", "ppo")
    saved, _ = SavedRuns(shorter.folder).newest()
    assert saved is not None
    assert saved.progress["finished"] == ["sft", "reward_model", "ppo"]
    longer = Run(tmp_path / "shorter", _config(), saved)
    _go(longer)
    assert "ppo_ptx" not in saved.progress["finished"]
    assert _traces(longer) == _traces(undisturbed)


@pytest.mark.parametrize("verb", ["policy.update", "critic.train_rankings", "rollout.admit"])
def test_a_run_that_died_in_a_step_goes_on(tmp_path: Path, undisturbed: Run, verb: str) -> None:
    run = Run(tmp_path, _config())
    run.hub.faults.deaths[verb] = {2}
    with pytest.raises(RoleDiedError):
        _go(run)
    found, skipped = SavedRuns(run.folder).newest()
    assert found is not None
    assert skipped == []
    resumed = Run(tmp_path, _config(), found)
    _go(resumed)
    assert _traces(resumed) == _traces(undisturbed)


@pytest.mark.parametrize("verb", ["critic.train_rankings", "policy.update"])
def test_a_run_whose_folder_is_lost_goes_on_from_its_mirror(
    tmp_path: Path, undisturbed: Run, verb: str
) -> None:
    run, faults = Run(tmp_path, _config()), Faults(every=7)

    def store() -> Store:
        return Store(lambda: FaultyMemory(faults), f"/mirror-{verb}", "s3://bucket/run", 10.0)

    mirror = Mirror(store(), run.folder, find_claim(store(), run.folder, ""), pause=0.001)
    mirror.begin()
    run.session.saves._mirror = mirror
    run.hub.faults.deaths[verb] = {2}
    with pytest.raises(RoleDiedError):
        _go(run)
    mirror.finish(lambda: 30.0)
    shutil.rmtree(run.folder.path)
    run.folder.path.mkdir()
    restored = restore(store(), run.folder, find_claim(store(), run.folder, "auto"))
    found, skipped = SavedRuns(run.folder).newest()
    assert restored is not None
    assert found is not None
    assert (found.path.name, skipped) == (restored.name, [])
    resumed = Run(tmp_path, _config(), found)
    _go(resumed)
    assert _traces(resumed) == _traces(undisturbed)


# The driver is a batch ahead of supervised trainers.
@pytest.mark.parametrize(("stage", "step"), [("sft", 3), ("reward_model", 2), ("ppo", 2)])
def test_a_run_that_is_asked_to_stop_saves_its_step_first(
    tmp_path: Path, undisturbed: Run, stage: str, step: int
) -> None:
    config = _config()
    config.run.checkpoint.every_steps = 0  # only because it is asked to
    run = Run(tmp_path, config)
    advance = run.session.live.advance

    def stop(done: int, **values: float) -> None:
        advance(done, **values)
        if run.hub.position.stage == stage and done == 2:
            run.stop.requested = True

    run.session.live.advance = stop  # type: ignore[method-assign]
    with pytest.raises(StoppedError, match=rf"up to \d+-{stage}-{step} is saved") as caught:
        _go(run)
    assert caught.value.exit_code == 8
    found, _ = SavedRuns(run.folder).newest()
    assert found is not None
    assert (found.stage, found.step) == (stage, step)
    resumed = Run(tmp_path, config, found)
    _go(resumed)
    assert _traces(resumed) == _traces(undisturbed)


def test_what_pretraining_started_from_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(path: str, **_: object) -> None:
        ToyPolicy.create(200, 4).save(path)

    monkeypatch.setattr("workers.pocket.model.create_model", make)
    config = _config()
    config.pretrain = PretrainConfig(steps=3, documents_per_step=2)
    run = Run(tmp_path, config)
    run.hub.faults.dead.add("policy.save")
    with pytest.raises(RoleDiedError):
        pretrain(run.session)
    initial = run.folder.checkpoints / "base_initial"
    before = {path.name: path.stat().st_ino for path in initial.iterdir()}
    found, _ = SavedRuns(run.folder).newest()
    assert found is not None
    assert (found.stage, found.step) == ("pretrain", 2)
    resumed = Run(tmp_path, config, found)
    pretrain(resumed.session)
    assert {path.name: path.stat().st_ino for path in initial.iterdir()} == before
    (spec,) = [fact["spec"] for fact in resumed.hub.facts("policy.load")]
    assert spec.checkpoint == str(initial)


def test_labels_are_kept_where_nothing_is_saved_within_stages(
    tmp_path: Path, undisturbed: Run
) -> None:
    config = _config()
    config.run.checkpoint.every_steps = 0
    run = Run(tmp_path, config)
    run.hub.faults.dead.add("critic.train_rankings")
    with pytest.raises(RoleDiedError):
        _go(run)
    found, _ = SavedRuns(run.folder).newest()
    assert found is not None
    assert (found.stage, found.step) == ("reward_model", 0)
    resumed = Run(tmp_path, config, found)
    reward_model(resumed.session)
    assert "rollout.generate" not in resumed.hub.names()
    assert resumed.session.counters() == run.session.counters()
    made = [
        r.folder.checkpoints / "reward_model" / "model.safetensors" for r in (resumed, undisturbed)
    ]
    assert _sha(made[0]) == _sha(made[1])


def test_metrics_after_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    run = Run(tmp_path, _config())
    sft(run.session)
    found, _ = SavedRuns(run.folder).newest()
    assert found is not None
    with run.folder.metrics.open("a") as file:
        file.write(json.dumps({"stage": "sft"})[:7])  # a torn line, as a killed run leaves it
    resumed = Run(tmp_path, _config(), found)
    steps = [r.step for r in resumed.metrics() if r.name == "sft/loss"]
    assert steps == list(range(found.step))

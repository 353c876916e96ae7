"""What may differ between a run and its continuation, and that stages can be made longer."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes.session import Run, small_config

from orchestrator.batching.batch_sizes import ONLINE_STAGES
from orchestrator.checkpoints import config_changes
from orchestrator.config import cluster, data, engines, evaluation, model, run, schema, training
from orchestrator.config.engines import OptimizerConfig, Schedule
from orchestrator.config.evaluation import EvaluateConfig, JudgeKind
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.training import RewardModelConfig, SFTBest, SFTConfig
from orchestrator.planning.runs.expand import models_read
from orchestrator.run_files.folder import RunFolder
from orchestrator.session.resume import Start, find_start, outlook
from orchestrator.session.session import Session
from orchestrator.stages.evaluate import evaluate
from orchestrator.stages.ppo.loop import ppo, ppo_ptx
from orchestrator.stages.reward_model import reward_model
from orchestrator.stages.sft import sft
from workers.errors import BrokenCheckpointError, ConfigError

STAGES: dict[str, Callable[[Session], None]] = {
    "sft": sft, "reward_model": reward_model, "ppo": ppo, "ppo_ptx": ppo_ptx, "evaluate": evaluate,
}  # fmt: skip


def steady() -> OptimizerConfig:
    return OptimizerConfig(learning_rate=1e-2, schedule=Schedule.constant, warmup_steps=1)


def made(folder: Path, *stages: str, **values: object) -> Config:
    """A small run of constant learning rates; values by key, dots as two underscores."""
    made = small_config()
    made.run.dir, made.resume = str(folder / "run"), "auto"
    made.stages = [StageName(stage) for stage in stages]
    made.run.checkpoint.every_steps, made.run.checkpoint.keep_last = 1, 100
    made.algorithm.policy_optimizer = made.algorithm.critic_optimizer = steady()
    made.algorithm.iterations, made.algorithm.evaluation_prompts = 3, 4
    made.sft = SFTConfig(
        steps=3, demonstrations_per_step=4, validation_demonstrations=8, optimizer=steady()
    )
    made.reward_model = RewardModelConfig(
        prompts=12, heldout_prompts=6, prompts_per_step=4, bias_demonstrations=8,
        optimizer=steady(),
    )  # fmt: skip
    made.evaluate = EvaluateConfig(prompts=8, web_documents=4, cloze_tasks=4)
    for key, value in values.items():
        *path, last = key.split("__")
        holder: Any = made
        for part in path:
            holder = getattr(holder, part)
        setattr(holder, last, value)
    return made


def ran(folder: Path, wanted: Config, start: Start | None = None) -> Run:
    run = Run(folder, wanted, start.saved if start else None)
    names = [s.value for s in wanted.stages if s.value not in run.session.saves.finished]
    for name in names:
        run.hub.position.stage, run.hub.position.step = name, 0
        STAGES[name](run.session)
        run.session.finish(name, last=name == names[-1])
    return run


def traces(run: Run) -> dict[str, object]:
    weights = sorted(run.folder.checkpoints.glob("*/model.safetensors"))
    rollouts = run.folder.rollouts
    return {
        "metrics": run.repeatable(),
        "weights": {w.parent.name: hashlib.sha256(w.read_bytes()).hexdigest() for w in weights},
        "rollouts": rollouts.read_text() if rollouts.exists() else "",
        "counters": run.session.counters(),
        "ledger": run.session.findings.ledger,
        "models": run.session.findings.models,
        "syncs": run.session.findings.syncs,
    }


@pytest.mark.parametrize(
    ("stages", "longer", "after", "values"),
    [
        (["sft"], {"sft__steps": 6}, "sft-2", {}),
        (["sft"], {"sft__steps": 6}, "sft-2", {"sft__optimizer__min_learning_rate_ratio": 1.0,
                                               "sft__optimizer__schedule": Schedule.cosine}),
        (["sft", "reward_model"], {"reward_model__epochs": 3}, "reward_model-1", {}),
        (["ppo"], {"algorithm__iterations": 5}, "ppo-2", {}),
        (["ppo"], {"algorithm__iterations": 5}, "ppo-1", {"algorithm__staleness": 2}),
        (["sft", "ppo"], {"algorithm__iterations": 4}, "sft-3",
         {"run__checkpoint__every_steps": 0}),
    ],
)  # fmt: skip
def test_a_finished_last_stage_made_longer_is_what_it_would_have_been_from_the_beginning(
    tmp_path: Path, stages: list[str], longer: dict, after: str, values: dict
) -> None:
    once, often = tmp_path / "once", tmp_path / "often"
    long = ran(once, made(once, *stages, **values, **longer))
    ran(often, made(often, *stages, **values))
    wanted = made(often, *stages, **values, **longer)
    start = find_start(wanted)
    assert start.saved is not None
    assert start.saved.path.name.partition("-")[2] == after
    assert start.doubts == []
    assert any("goes back from stage" in note for note in start.notes)
    assert any(note.startswith("done again") for note in start.notes)
    assert outlook(wanted, start)[-1].startswith("from there on the bits of an undisturbed run")
    again = ran(often, wanted, start)
    assert traces(again) == traces(long)


def test_a_stage_in_progress_is_made_longer_and_later_stages_differ(tmp_path: Path) -> None:
    once, often = tmp_path / "once", tmp_path / "often"
    longer = {"sft__steps": 6, "algorithm__iterations": 2, "algorithm__clip": 0.1}
    long = ran(once, made(once, "sft", "ppo", **longer))
    ran(often, made(often, "sft"))
    wanted = made(often, "sft", "ppo", **longer)
    (path,) = (often / "run" / "state").glob("*-sft-1")
    wanted.resume = str(path)
    start = find_start(wanted)
    (note, again) = start.notes
    assert note.startswith("as in a run that had it from the beginning: algorithm.clip 0.2 -> 0.1;")
    assert "sft.steps 3 -> 6" in note
    assert again.endswith("sft 2 step(s)")
    assert traces(ran(often, wanted, start)) == traces(long)


def test_an_appended_stage_brings_keys_of_its_own(tmp_path: Path) -> None:
    once, often = tmp_path / "once", tmp_path / "often"
    own = {"algorithm__ptx__coefficient": 0.25, "evaluate__prompts": 4}
    long = ran(once, made(once, "sft", "ppo", "ppo_ptx", "evaluate", **own))
    ran(often, made(often, "sft", "ppo"))
    wanted = made(often, "sft", "ppo", "ppo_ptx", "evaluate", **own)
    start = find_start(wanted)
    assert start.saved is not None
    assert start.saved.stage == "ppo"
    assert traces(ran(often, wanted, start)) == traces(long)
    with pytest.raises(ConfigError, match=r"algorithm\.ptx\.coefficient 0\.25 -> 0\.5\n"):
        find_start(made(often, "sft", "ppo", "ppo_ptx", "evaluate", evaluate__prompts=4))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    ran(folder, made(folder, "sft", "reward_model", "ppo"))
    return folder


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"sft__steps": 6}, r"sft.steps 3 -> 6 (sft is finished, and a later stage has begun)"),
        ({"reward_model__epochs": 2}, "(reward_model is finished, and a later stage has begun)"),
        ({"algorithm__iterations": 2}, "(a stage that has begun can only be made longer)"),
        ({"algorithm__clip": 0.1}, "algorithm.clip 0.2 -> 0.1"),
        ({"algorithm__iterations": 9, "seed": 1}, "seed 0 -> 1"),
        ({"sft__epochs": 1}, "sft is finished"),
    ],
)
def test_what_would_not_be_exact_is_refused_by_its_key_and_reason(
    finished: Path, values: dict, why: str
) -> None:
    before = sorted(finished.rglob("*"))
    with pytest.raises(ConfigError, match="the configuration differs") as caught:
        find_start(made(finished, "sft", "reward_model", "ppo", **values))
    assert why in caught.value.what
    assert sorted(finished.rglob("*")) == before


@pytest.mark.parametrize(
    ("optimizer", "why"),
    [
        ({"schedule": Schedule.cosine}, "sft.optimizer.schedule=cosine"),
        ({"schedule": Schedule.linear}, "sft.optimizer.schedule=linear"),
        ({"warmup_steps": 3}, "sft.optimizer.warmup_steps, which were cut"),
    ],
)
@pytest.mark.parametrize("at", ["newest", "in its middle"])
def test_a_stage_whose_learning_rates_depend_on_its_length_is_not_made_longer(
    tmp_path: Path, optimizer: dict, why: str, at: str
) -> None:
    values = {f"sft__optimizer__{name}": value for name, value in optimizer.items()}
    ran(tmp_path, made(tmp_path, "sft", **values))
    wanted = made(tmp_path, "sft", sft__steps=6, **values)
    if at != "newest":
        wanted.resume = str(next((tmp_path / "run" / "state").glob("*-sft-2")))
    with pytest.raises(ConfigError, match=r"sft\.steps 3 -> 6 \(its learning rates") as caught:
        find_start(wanted)
    assert why in caught.value.what


def test_the_end_of_a_stage_that_is_named_is_not_left_for_an_earlier_one(finished: Path) -> None:
    wanted = made(finished, "sft", "reward_model", "ppo", algorithm__iterations=4)
    wanted.resume = str(next((finished / "run" / "state").glob("*-ppo-3")))
    with pytest.raises(ConfigError, match=r"iterations 3 -> 4 \(ppo is finished there\)"):
        find_start(wanted)


def test_without_an_earlier_checkpoint_a_finished_stage_is_not_made_longer(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    for path in (tmp_path / "run" / "state").glob("*-*-*"):
        if not path.name.endswith("ppo-3"):
            shutil.rmtree(path)
    with pytest.raises(ConfigError, match="no checkpoint is left from which ppo") as caught:
        find_start(made(tmp_path, "sft", "reward_model", "ppo", algorithm__iterations=4))
    assert "algorithm.iterations 3 -> 4" in caught.value.what


def test_the_last_stage_goes_on_though_the_newest_checkpoint_but_one_is_damaged(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    (damaged,) = (tmp_path / "run" / "state").glob("*-ppo-2")
    (damaged / "progress.json").unlink()
    start = find_start(made(tmp_path, "sft", "reward_model", "ppo", algorithm__iterations=4))
    assert start.saved is not None
    assert (start.saved.stage, start.saved.step) == ("ppo", 1)


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch, root: Config) -> Iterator[set[str]]:
    """The keys of `root` that are read in the block."""
    names = {id(root): ""}
    read = set[str]()

    def name(node: object, prefix: str) -> None:
        for field in getattr(node, "__dataclass_fields__", ()):
            child = getattr(node, field)
            if hasattr(child, "__dataclass_fields__"):
                names[id(child)] = f"{prefix}{field}."
                name(child, f"{prefix}{field}.")

    name(root, "")

    def reading(node: object, key: str) -> object:
        value = object.__getattribute__(node, key)
        if id(node) in names and not key.startswith("_") and id(value) not in names:
            read.add(f"{names[id(node)]}{key}")
        return value

    with monkeypatch.context() as patch:
        groups = (cluster, data, engines, evaluation, model, run, schema, training)
        for kind in (each for group in groups for each in vars(group).values()):
            if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__"):
                patch.setattr(kind, "__getattribute__", reading, raising=False)
        yield read


@pytest.mark.parametrize("stage", [*STAGES])
def test_a_stage_reads_no_key_that_may_change_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    wanted = made(tmp_path, stage, algorithm__ptx__documents_per_episode=0.5)
    run = Run(tmp_path, copy.deepcopy(wanted))
    run.hub.position.stage = stage
    with recorded(monkeypatch, run.session.config) as read:
        STAGES[stage](run.session)
        run.session.finish(stage, last=True)
    own = {
        "evaluate": "evaluate.prompts",
        "sft": "sft.steps",
        "reward_model": "reward_model.epochs",
    }
    assert own.get(stage, "algorithm.iterations") in read
    for key in sorted(read):
        readers = config_changes._readers(key)
        # read to see whether training asks a judge; `_more_readers` has those that it then reads
        asked = key == "evaluate.judge" and stage.startswith("ppo")
        assert readers is None or StageName(stage) in readers or asked, key


def test_the_longest_prefix_tells_who_reads_a_key() -> None:
    assert config_changes._readers("algorithm.ptx.coefficient") == (StageName.ppo_ptx,)
    assert config_changes._readers("algorithm.clip") == ONLINE_STAGES
    assert config_changes._readers("algorithm.on_non_finite") is None
    assert config_changes._readers("rollout.temperature") is None
    assert config_changes._readers("rewards.kind") is None
    for key in config_changes.READERS:
        known = {*config_changes.flat(config_changes.plain_config(Config()))}
        assert any(each == key or each.startswith(f"{key}.") for each in known), key
    assert {*config_changes._LENGTHS} <= {
        *config_changes.flat(config_changes.plain_config(Config()))
    }


def test_a_judge_and_a_reward_model_are_read_by_training_that_asks_them() -> None:
    config = Config(stages=[StageName.sft, StageName.ppo])

    def readers(key: str, own: dict[str, object] | None = None) -> tuple[StageName, ...]:
        before = "function" if key == "evaluate.judge" else ""
        return config_changes._more_readers(
            config_changes._Change(key, before, ""), config, own or {}
        )

    given, judge = "model.checkpoints.reward_model", "evaluate.judge_function"
    assert readers(judge) == readers(given) == readers("reward.bridge") == ()
    assert readers("evaluate.judge") == ONLINE_STAGES  # it was a function until now
    config.evaluate.judge, config.sft.keep_best = JudgeKind.function, SFTBest.reward_model
    assert readers(judge) == ONLINE_STAGES
    assert readers(given) == readers("reward.bridge") == (StageName.sft,)
    assert readers("evaluate.prompts") == ()
    # a variant may ask, or choose, where the stages do not, and the other way round
    assert readers(judge, {"algorithm.evaluation_judge": "none"}) == ()
    assert readers(judge, {"algorithm.evaluate_every": 0}) == ()
    assert readers(given, {"sft.keep_best": "loss"}) == ()
    config.evaluate.judge, config.sft.keep_best = JudgeKind.endpoint, SFTBest.none
    assert readers(judge) == ()
    assert readers(judge, {"algorithm.evaluation_judge": "endpoint"}) == ONLINE_STAGES
    assert readers(given, {"sft.keep_best": "reward_model"}) == (StageName.sft,)


def test_a_folder_copied_elsewhere_is_made_longer_there(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    wanted = made(tmp_path, "sft", "reward_model", "ppo", algorithm__iterations=4)
    start = find_start(wanted)
    assert start.folder == RunFolder(tmp_path / "run")
    whole = tmp_path / "whole"
    long = ran(whole, made(whole, "sft", "reward_model", "ppo", algorithm__iterations=4))
    assert traces(ran(tmp_path, wanted, start)) == traces(long)


def test_a_model_that_no_stage_reads_any_more_may_be_missing(tmp_path: Path) -> None:
    once, often = tmp_path / "once", tmp_path / "often"
    stages = ("sft", "reward_model", "ppo", "ppo_ptx")
    long = ran(once, made(once, *stages))
    ran(often, made(often, *stages[:3]))
    shutil.rmtree(often / "run" / "checkpoints" / "ppo")
    wanted = made(often, *stages)
    start = find_start(wanted)
    assert start.saved is not None
    assert (start.saved.stage, sorted(start.saved.progress["checkpoints"])) == (
        "ppo", ["reward_model", "sft"],
    )  # fmt: skip
    (note,) = start.notes
    assert note == "no stage that is left reads the model ppo: rehearsal.json is missing"
    again = traces(ran(often, wanted, start))
    expected = traces(long)
    assert expected["weights"].pop("ppo")  # type: ignore[attr-defined]
    assert again == expected


@pytest.mark.parametrize(
    ("stages", "name"),
    [
        (("sft", "reward_model", "ppo", "ppo_ptx"), "sft"),
        (("sft", "reward_model", "ppo", "ppo_ptx"), "reward_model"),
        (("sft", "reward_model", "ppo", "evaluate"), "ppo"),
    ],
)
def test_a_model_that_a_stage_still_reads_is_refused_by_its_name(
    finished: Path, tmp_path: Path, stages: tuple[str, ...], name: str
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    wanted = made(tmp_path, *stages)
    wanted.resume = str(next((tmp_path / "run" / "state").glob("*-ppo-3")))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / name)
    with pytest.raises(BrokenCheckpointError, match=f"checkpoints/{name}"):
        find_start(wanted)


@pytest.mark.parametrize(
    ("stages", "stage", "finished", "names"),
    [
        ("pretrain", "pretrain", "", {"base_initial"}),
        ("pretrain,sft", "sft", "pretrain", {"base", "sft_initial"}),
        ("pretrain,sft,reward_model", "sft", "pretrain,sft", {"sft", "base"}),
        ("pretrain,sft,reward_model,ppo", "reward_model", "pretrain,sft,reward_model",
         {"sft", "reward_model"}),
        ("pretrain,sft,pretrain_large", "pretrain_large", "pretrain,sft", {"large_initial"}),
        ("pretrain,sft", "sft", "pretrain,sft", set()),
        ("sft,evaluate", "sft", "sft",
         {"base", "large", "sft", "reward_model", "ppo", "ppo_ptx", "dpo", "online_dpo",
          "rejection_sampling"}),
        ("", "ppo", "sft", {"sft", "reward_model", "ppo_initial"}),
    ],
)  # fmt: skip
def test_the_models_that_are_still_read_are_those_of_the_stages_that_are_left(
    stages: str, stage: str, finished: str, names: set[str]
) -> None:
    config = Config(stages=[StageName(each) for each in stages.split(",") if each])
    assert models_read(config, stage, finished.split(",")) == names

"""On-policy distillation over fake roles: which model teaches, what is learned, and going on."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from composing import composed
from fakes.session import Run, small_config
from fakes.toy import ToyPolicy
from family_models import build_family

from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.cluster import RoleName
from orchestrator.config.data import DataConfig, DataSourceKind, FilesConfig
from orchestrator.config.model import CheckpointPaths, ModelConfig
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.plan import make_plan, render_plan
from orchestrator.preflight.dry_run import look
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.samples import read_rollouts
from orchestrator.stages.ppo.loop import ppo
from workers.errors import BatchArithmeticError, ConfigError, TokenizerMismatchError
from workers.pocket.source import PocketSource
from workers.pocket.tokenizer import build_tokenizer


def config() -> Config:
    config = small_config()
    config.algorithm.advantage = "distill"
    config.algorithm.kl.coefficient = 0.0
    return config


def run(path: Path, settings: Config | None = None, seed: int = 5, *resumed, **sizes: int) -> Run:
    """A run whose teacher has these weights; the student's are those of seed 2."""
    made = Run(path, settings or config(), *resumed, **sizes)
    ToyPolicy.create(len(made.source.tokenizer), seed).save(path / "teacher")
    made.session.checkpoints["teacher"] = str(path / "teacher")
    return made


def weights(made: Run, name: str):
    return ToyPolicy.load(made.session.checkpoints[name]).weights


def test_the_teacher_is_the_reference_and_nobody_gives_rewards(tmp_path: Path) -> None:
    made = run(tmp_path, policy=2, reference=2)
    ppo(made.session)
    loaded = {facts["spec"].checkpoint for facts in made.hub.facts("reference.load")}
    assert loaded == {made.session.checkpoints["teacher"]}
    calls = {name.partition(".")[0] for name in made.hub.names()}
    assert calls == {"rollout", "reference", "policy"}
    names = {record.name for record in made.metrics()}
    assert "ppo/kl_sequence" in names
    assert not [n for n in names if "score" in n or "shaped" in n or "value" in n]
    assert all(math.isnan(sample.score) for sample in read_rollouts(made.folder))


def test_advantages_are_the_log_ratios_of_the_sampled_tokens(tmp_path: Path) -> None:
    made = run(tmp_path, policy=2)
    ppo(made.session)
    student, teacher = (ToyPolicy.load(made.session.checkpoints[n]) for n in ("sft", "teacher"))
    first = made.hub.facts("policy.update")[0]
    for shard in first["experience"].shards:
        for row, start, found in zip(
            shard.tokens.rows(), shard.prompt_lengths, shard.advantages.rows(), strict=True
        ):
            expected = teacher.logprobs(row, int(start)) - student.logprobs(row, int(start))
            assert found == pytest.approx(expected.detach().numpy(), abs=1e-5)
    assert first["loss"].advantage_std == 1.0
    assert first["loss"].advantage_mean == 0.0


def test_a_student_of_its_own_learns_nothing_at_all(tmp_path: Path) -> None:
    made = run(tmp_path, seed=2)
    ppo(made.session)
    for facts in made.hub.facts("policy.update"):
        for shard in facts["experience"].shards:
            assert np.abs(shard.advantages.values).sum() == 0.0
    assert weights(made, "ppo").equal(weights(made, "sft"))
    assert made.series("ppo/kl_sequence") == [0.0, 0.0]


def test_the_distance_to_the_teacher_falls_and_the_ledger_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fakes.engines.RATE", 1.0)
    settings = config()
    settings.algorithm.iterations, settings.algorithm.evaluate_every = 30, 0
    made = run(tmp_path, settings)
    ppo(made.session)
    kl = made.series("ppo/kl_sequence")
    assert np.mean(kl[-6:]) < 0.7 * np.mean(kl[:6])
    ledger = made.session.findings.ledger
    assert (ledger.generated, ledger.trained, ledger.dropped) == (480, 480, 0)


def test_a_resumed_distillation_ends_in_the_same(tmp_path: Path) -> None:
    def settings() -> Config:
        chosen = config()
        chosen.algorithm.iterations, chosen.run.checkpoint.every_steps = 3, 1
        return chosen

    whole = run(tmp_path / "whole", settings())
    ppo(whole.session)
    saved = SavedRuns(whole.folder).steps()["ppo"][1]
    folder = RunFolder(shutil.copytree(whole.folder.path, tmp_path / "again" / "run"))
    place = tmp_path / "again"
    again = run(place, settings(), 5, SavedRuns(folder).read(folder.state / saved.name))
    ppo(again.session)
    assert again.repeatable() == whole.repeatable()
    assert weights(again, "ppo").equal(weights(whole, "ppo"))


def pocket(*overrides: str) -> Config:
    return composed("+experiment=pocket_distill", *overrides)


def test_the_plan_has_a_teacher_and_no_reward() -> None:
    plan = make_plan(pocket("model.checkpoints.teacher=T"))
    (stage,) = (each for each in plan.stages if each.name is StageName.ppo)
    assert stage.needs == ("sft", "teacher")
    assert set(stage.roles) == {RoleName.rollout, RoleName.reference, RoleName.policy}
    text = render_plan(plan)
    assert "the reference is the teacher" in text
    assert "no rewards, so no reward role" in text


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        ([], "model.checkpoints.teacher"),
        (["model.checkpoints.teacher=T", "algorithm.overlong.buffer_tokens=4"],
         "algorithm.overlong.buffer_tokens"),
        (["model.checkpoints.teacher=T", "algorithm.dynamic_sampling.enabled=true",
          "algorithm.samples_per_prompt=2"], "algorithm.dynamic_sampling.enabled"),
    ],
)  # fmt: skip
def test_what_distillation_lacks_is_refused_at_its_key(overrides: list[str], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(pocket(*overrides))
    assert caught.value.where == where


def given(student: Path, teacher: Path, positions: int = 24) -> Config:
    data = FilesConfig(prompts=str(student.parent / "prompts.jsonl"), max_prompt_tokens=24)
    prompts = PocketSource(0, 0.5, 0.25).prompts("ppo", 0, 64)
    Path(data.prompts).write_text("".join(json.dumps({"prompt": p.text}) + "\n" for p in prompts))
    chosen = Config(
        experiment="test",
        stages=[StageName.ppo],
        model=ModelConfig(checkpoints=CheckpointPaths(sft=str(student), teacher=str(teacher))),
        data=DataConfig(source=DataSourceKind.files, files=data),
    )
    chosen.algorithm.advantage = "distill"
    chosen.rollout.max_prompt_tokens = chosen.rollout.max_response_tokens = positions
    return chosen


def test_a_teacher_with_other_words_is_refused_by_its_fingerprint(tmp_path: Path) -> None:
    other = build_tokenizer()
    other.pad_token = "fox"  # the same ids of all words
    student = build_family("qwen3", tmp_path / "student")
    teacher = build_family("qwen3", tmp_path / "teacher", other)
    with pytest.raises(TokenizerMismatchError, match="have the fingerprints") as caught:
        look(given(Path(student), Path(teacher)))
    assert caught.value.where == "model.checkpoints.teacher"
    same = build_family("qwen3", tmp_path / "same")
    look(given(Path(student), Path(same)))


def test_a_reference_counts_in_the_plan_and_has_the_policys_words(tmp_path: Path) -> None:
    other = build_tokenizer()
    other.pad_token = "fox"
    student = Path(build_family("qwen3", tmp_path / "student"))
    chosen = given(student, Path("/"))
    chosen.model.checkpoints.teacher = ""
    chosen.data.files.max_completion_tokens = 24
    chosen.data.files.rankings = str(tmp_path / "rankings.jsonl")
    asked = PocketSource(0, 0.5, 0.25).prompts("ppo", 0, 64)
    told = [{"prompt": p.text, "completions": ["a .", "no ."], "ranks": [1, 2]} for p in asked]
    Path(chosen.data.files.rankings).write_text("".join(json.dumps(t) + "\n" for t in told))
    chosen.variants = {"x": {"stage": "dpo", "reference": "ppo"}}
    chosen.stages = ["x"]
    chosen.model.checkpoints.ppo = build_family("qwen3", tmp_path / "deep", num_hidden_layers=6)
    memory = {each.role: each.parameters for each in make_plan(chosen).memory}
    assert memory[RoleName.reference] > 1.5 * memory[RoleName.policy]
    look(chosen)
    chosen.model.checkpoints.ppo = build_family("qwen3", tmp_path / "foreign", other)
    with pytest.raises(TokenizerMismatchError, match="reference ppo and the policy") as caught:
        look(chosen)
    assert caught.value.where == "model.checkpoints.ppo"
    short = build_family("qwen3", tmp_path / "short", max_position_embeddings=40)
    chosen.model.checkpoints.ppo = short
    with pytest.raises(BatchArithmeticError, match="40 positions") as early:
        make_plan(chosen)
    assert early.value.where == "model.checkpoints.ppo"


def test_a_larger_teacher_counts_in_the_plans_memory_and_a_short_one_is_refused(
    tmp_path: Path,
) -> None:
    student = Path(build_family("qwen3", tmp_path / "student"))
    teacher = Path(build_family("qwen3", tmp_path / "teacher", num_hidden_layers=6))
    plan = make_plan(given(student, teacher))
    memory = {each.role: each.parameters for each in plan.memory}
    assert plan.size is not None
    assert memory[RoleName.policy] == plan.size.parameters
    assert memory[RoleName.reference] > 1.5 * memory[RoleName.policy]
    short = Path(build_family("qwen3", tmp_path / "short", max_position_embeddings=40))
    with pytest.raises(BatchArithmeticError, match="40 positions") as caught:
        make_plan(given(student, short))
    assert caught.value.where == "model.checkpoints.teacher"

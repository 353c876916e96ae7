"""Where the critic starts, and which backbones are refused before anything is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from family_models import build_family

from orchestrator.config.data import DataConfig, DataSourceKind, FilesConfig
from orchestrator.config.engines import RolloutConfig
from orchestrator.config.model import CheckpointPaths, ModelConfig
from orchestrator.config.reward import RewardConfig, TextBridge
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.backbones import check_backbones, critic_start
from orchestrator.planning.plan import make_plan
from workers.errors import (
    BatchArithmeticError,
    BrokenCheckpointError,
    ConfigError,
    TokenizerMismatchError,
)
from workers.models.load import load_scalar
from workers.pocket.tokenizer import build_tokenizer


def other_words():
    """As many words under other ids."""
    tokenizer = build_tokenizer()
    tokenizer.eos_token = "fox"
    return tokenizer


def scalar(root: Path, family: str, tokenizer=None, **more) -> str:
    tokenizer = tokenizer or build_tokenizer()
    body = build_family(family, root / f"{family}-body", tokenizer, **more)
    folder = root / f"{family}-scalar"
    load_scalar(str(body), dtype="float32", head="random").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backbones")


@pytest.fixture(scope="module")
def policy(root: Path) -> str:
    return str(build_family("qwen3", root / "policy"))


def config(policy: str, reward: RewardConfig | None = None, **given: str) -> Config:
    rollout = RolloutConfig(max_prompt_tokens=24, max_response_tokens=24)
    files = FilesConfig(prompts="prompts.jsonl", max_prompt_tokens=24)
    return Config(
        experiment="test",
        stages=[StageName.ppo],
        model=ModelConfig(checkpoints=CheckpointPaths(sft=policy, **given)),
        data=DataConfig(source=DataSourceKind.files, files=files),
        reward=reward or RewardConfig(),
        rollout=rollout,
    )


TEXT = RewardConfig(bridge=TextBridge.text)
FUNCTION = RewardConfig(kind="function", bridge=TextBridge.text, function="package.module:callable")


def start(config: Config) -> tuple[str, str]:
    given = config.model.checkpoints
    folders = {"sft": given.sft, "reward_model": given.reward_model, "critic": given.critic}
    found = critic_start(config, folders)
    return found.checkpoint, found.head


def test_the_critic_starts_from_a_reward_model_of_another_family(root: Path, policy: str) -> None:
    judge = scalar(root, "gpt2")
    for reward in (RewardConfig(), TEXT):  # by either bridge: the tokenizer is the same
        assert start(config(policy, reward, reward_model=judge)) == ("reward_model", "keep")


def test_not_from_one_that_reads_other_words(tmp_path: Path, policy: str) -> None:
    judge = scalar(tmp_path, "gpt2", other_words())
    run = config(policy, TEXT, reward_model=judge)
    assert start(run) == ("sft", "zero")
    assert any("another tokenizer" in note for note in make_plan(run).notes)


def test_a_critic_of_its_own(root: Path, policy: str) -> None:
    head, body = scalar(root, "llama"), root / "llama-body"
    assert start(config(policy, FUNCTION)) == ("sft", "zero")
    assert start(config(policy, FUNCTION, critic=head)) == ("critic", "keep")
    assert start(config(policy, FUNCTION, critic=str(body))) == ("critic", "zero")


def test_a_family_without_a_scalar_head_is_refused_by_the_plan(tmp_path: Path, root: Path) -> None:
    opt = str(build_family("opt", tmp_path))
    with pytest.raises(ConfigError, match="no token-classification class for 'opt'"):
        make_plan(config(opt, FUNCTION))
    make_plan(config(opt, FUNCTION, critic=scalar(root, "llama")))


@pytest.mark.parametrize(
    ("stages", "given"),
    [
        ([StageName.sft, StageName.ppo], "base"),
        ([StageName.pretrain, StageName.sft, StageName.ppo], "initial"),
        ([StageName.pretrain, StageName.sft, StageName.reward_model], "initial"),
    ],
)
def test_so_is_one_that_the_run_only_begins_with(
    tmp_path: Path, stages: list[StageName], given: str
) -> None:
    run = config("", FUNCTION, **{given: str(build_family("opt", tmp_path))})
    run.stages = stages
    with pytest.raises(ConfigError, match="no token-classification class for 'opt'") as caught:
        check_backbones(run, None)
    assert caught.value.where == f"model.checkpoints.{given}"


@pytest.mark.parametrize("bridge", list(TextBridge))
@pytest.mark.parametrize("name", ["critic", "reward_model", "sft"])
@pytest.mark.parametrize(
    "text",
    [
        b'{"model_type": "qw',
        b"[]",
        b"\xff\xfe",
        b'{"model_type": "nothing-like-it"}',
        b'{"model_type": "llama", "hidden_size": "wide"}',
    ],
)
def test_a_damaged_configuration_is_named_with_its_folder(
    tmp_path: Path, policy: str, name: str, text: bytes, bridge: TextBridge
) -> None:
    folder = Path(shutil.copytree(policy, tmp_path / "damaged"))
    (folder / "config.json").write_bytes(text)
    run = config(policy, RewardConfig(bridge=bridge), reward_model=policy)
    setattr(run.model.checkpoints, name, str(folder))
    with pytest.raises(BrokenCheckpointError, match="config") as caught:
        make_plan(run)
    assert caught.value.where == str(folder)
    assert caught.value.fix
    assert caught.value.exit_code == 4


def test_a_backbone_must_take_every_sequence_of_the_policy(tmp_path: Path, policy: str) -> None:
    short = scalar(tmp_path / "short", "gpt2", n_positions=40)
    with pytest.raises(BatchArithmeticError, match="48 tokens; this model has 40 positions"):
        make_plan(config(policy, reward_model=short))
    few = scalar(tmp_path / "few", "gpt2", vocab_size=50)
    with pytest.raises(TokenizerMismatchError, match="this model knows 50"):
        make_plan(config(policy, reward_model=few))
    # Text is written anew for a reward model of its own tokenizer: what is too long is a drop.
    foreign = scalar(tmp_path / "foreign", "gpt2", other_words(), n_positions=40)
    make_plan(config(policy, TEXT, reward_model=foreign))


def test_engines_cannot_serve_every_head_size(tmp_path: Path, root: Path) -> None:
    narrow = str(build_family("gpt2", tmp_path, n_head=4))
    with pytest.raises(ConfigError, match=r"heads of size 16.*\n.*model\.checkpoints\.sft"):
        make_plan(config(narrow, reward_model=scalar(root, "gpt2")))

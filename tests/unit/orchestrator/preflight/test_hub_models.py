"""A model may be named as on the hub; the cache is asked first, and paths are never asked for."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from orchestrator.config.model import CheckpointPaths, ModelConfig
from orchestrator.config.schema import Config
from orchestrator.preflight.hub_models import name_of, resolve
from workers.errors import MissingCheckpointError
from workers.pocket.model import create_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds `org/tiny`, on a machine without a network."""
    cache, repository = tmp_path / "hub", tmp_path / "hub" / "models--org--tiny"
    create_model(
        repository / "snapshots" / COMMIT, hidden_size=16, layers=1, heads=2, kv_heads=1,
        intermediate_size=24, max_position_embeddings=32, tie_word_embeddings=False, seed=0,
    )  # fmt: skip
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return cache


def run(sft: str) -> Config:
    return Config(model=ModelConfig(checkpoints=CheckpointPaths(sft=sft)))


@pytest.mark.parametrize("name", ["org/tiny", f"org/tiny@{COMMIT}", "org/tiny@main"])
def test_a_name_becomes_the_folder_in_the_cache_and_its_commit_is_kept(
    cache: Path, name: str
) -> None:
    config = run(name)
    assert resolve(config) == {"model.checkpoints.sft": f"org/tiny@{COMMIT}"}
    assert config.model.checkpoints.sft == str(cache / "models--org--tiny" / "snapshots" / COMMIT)


def test_a_folder_of_the_same_name_wins(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    config = run("org/tiny")
    assert resolve(config) == {}
    assert config.model.checkpoints.sft == "org/tiny"


def test_what_is_nowhere_is_refused_with_the_command_that_fetches_it(cache: Path) -> None:
    with pytest.raises(MissingCheckpointError, match="offline") as caught:
        resolve(run("org/other@v2"))
    assert caught.value.where == "model.checkpoints.sft"
    assert "'org/other@v2'" in caught.value.what
    assert str(cache) in caught.value.what
    assert "hf download org/other --revision v2" in caught.value.fix


def test_a_cache_without_the_weights_is_no_model(cache: Path) -> None:
    (cache / "models--org--tiny" / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(MissingCheckpointError, match="no whole model of that name"):
        resolve(run("org/tiny"))


def test_what_the_cache_lacks_is_downloaded_without_pickles(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(name: str, *, local_files_only: bool, allow_patterns: list[str], **_: object):
        if local_files_only:
            raise FileNotFoundError(name)
        asked.append(allow_patterns)
        return str(cache / "models--org--tiny" / "snapshots" / COMMIT)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve(run("org/new")) == {"model.checkpoints.sft": f"org/new@{COMMIT}"}
    assert "*.safetensors" in asked[0]
    assert not any("bin" in pattern for pattern in asked[0])


@pytest.mark.parametrize(
    "text",
    ["", "tiny", "/org/tiny", "./org/tiny", "../tiny", "~/tiny", "a/b/c", "org/tiny/", "org/..",
     "o rg/tiny", "hub/tiny"],
)  # fmt: skip
def test_a_path_is_never_looked_up(cache: Path, text: str) -> None:
    assert cache.name == "hub"  # a folder here: `hub/tiny` is a slip in a path
    assert name_of(text) is None

"""A checkpoint folder is whole or it does not exist, and nothing damaged is ever loaded."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.checkpoints import model_folder
from workers.errors import (
    BrokenCheckpointError,
    CheckpointError,
    DeadlineError,
    MissingCheckpointError,
)


def _save(folder: str) -> None:
    save_file({"weight": torch.arange(64.0)}, str(Path(folder) / "model.safetensors"))
    (Path(folder) / "config.json").write_text('{"model_type": "llama"}')


def _published(tmp_path: Path) -> Path:
    return model_folder.publish(tmp_path / "sft", _save, {"stage": "sft"})


def test_publish_makes_a_folder_that_require_accepts(tmp_path: Path) -> None:
    folder = _published(tmp_path)
    assert model_folder.require(str(folder), "sft") == folder
    manifest = json.loads((folder / "rehearsal.json").read_text())
    assert manifest["facts"] == {"stage": "sft"}
    assert set(manifest["files"]) == {"model.safetensors", "config.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["sft"]


def test_publish_replaces_an_older_folder(tmp_path: Path) -> None:
    folder = _published(tmp_path)
    (folder / "stale.txt").write_text("old")
    _published(tmp_path)
    assert not (folder / "stale.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["sft"]


def test_a_save_that_fails_leaves_the_older_folder(tmp_path: Path) -> None:
    folder = _published(tmp_path)

    def fail(path: str) -> None:
        _save(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CheckpointError, match="the model cannot be written: No space left"):
        model_folder.publish(folder, fail, {})
    assert model_folder.require(str(folder), "sft") == folder


def test_an_error_of_a_role_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def late(path: str) -> None:
        raise DeadlineError("policy/0 did not save in time")  # a TimeoutError, so an OSError

    with pytest.raises(DeadlineError):
        model_folder.publish(tmp_path / "sft", late, {})


def test_a_save_without_weights_is_not_published(tmp_path: Path) -> None:
    def empty(path: str) -> None:
        (Path(path) / "config.json").write_text("{}")

    with pytest.raises(BrokenCheckpointError, match=r"no \*.safetensors"):
        model_folder.publish(tmp_path / "sft", empty, {})
    assert not (tmp_path / "sft").exists()


def test_a_missing_folder_names_the_key_that_gives_it(tmp_path: Path) -> None:
    with pytest.raises(MissingCheckpointError) as caught:
        model_folder.require(str(tmp_path / "nowhere"), "sft")
    assert "model.checkpoints.sft" in caught.value.fix
    assert str(tmp_path / "nowhere") in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), "does not parse"),
        (lambda f: (f / "model.safetensors").unlink(), "no \\*.safetensors"),
        (lambda f: _truncate(f / "model.safetensors", 100), "cut short"),
        (lambda f: _truncate(f / "model.safetensors", 4), "cut short"),
        (lambda f: _flip(f / "model.safetensors", -3), "differs from what"),
        (lambda f: (f / "config.json").write_text('{"model_type": "gpt2"}'), "differs from what"),
        (lambda f: (f / "rehearsal.json").write_text("{}"), "does not parse"),
    ],
)
def test_damage_is_found_before_loading(tmp_path: Path, damage, says: str) -> None:
    folder = _published(tmp_path)
    damage(folder)
    with pytest.raises(BrokenCheckpointError, match=says):
        model_folder.require(str(folder), "sft")


def _truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_every_flipped_bit_of_rehearsal_json_is_damage(tmp_path: Path) -> None:
    file = _published(tmp_path) / "rehearsal.json"
    good = file.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        file.write_bytes(bad)
        with pytest.raises(BrokenCheckpointError):
            model_folder.facts(file.parent)
        if position % 50 == 0:
            with pytest.raises(BrokenCheckpointError):
                model_folder.require(str(file.parent), "sft")
    file.write_bytes(good)
    assert model_folder.facts(file.parent) == {"stage": "sft"}


def test_a_folder_of_the_current_schema_needs_the_checksum(tmp_path: Path) -> None:
    _without_checksum(_published(tmp_path), {"schema": model_folder.SCHEMA_VERSION})
    with pytest.raises(BrokenCheckpointError, match="it has no checksum"):
        model_folder.require(str(tmp_path / "sft"), "sft")


@pytest.mark.parametrize("schema", [{}, {"schema": 1}])
def test_folders_of_versions_without_a_checksum_are_taken_by_size_and_hash(
    tmp_path: Path, schema: dict[str, int]
) -> None:
    folder = _published(tmp_path)
    _without_checksum(folder, schema)
    assert model_folder.require(str(folder), "sft") == folder
    assert model_folder.facts(folder) == {"stage": "sft"}
    (folder / "config.json").write_text('{"model_type": "gemma"}')
    with pytest.raises(BrokenCheckpointError, match=r"differs from what rehearsal\.json recorded"):
        model_folder.require(str(folder), "sft")


def _without_checksum(folder: Path, schema: dict[str, int]) -> None:
    manifest = json.loads((folder / "rehearsal.json").read_text())
    del manifest["checksum"], manifest["schema"]
    (folder / "rehearsal.json").write_text(json.dumps(manifest | schema))

import json
from pathlib import Path

import pytest

from orchestrator.run_files.folder import RunFolder, write_json, write_text
from workers.errors import ConfigError, NonFiniteError


def test_create_makes_the_subfolders_and_accepts_what_hydra_left(tmp_path: Path) -> None:
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "run" / "run.log").touch()
    folder = RunFolder(tmp_path / "run").create()
    assert sorted(p.name for p in folder.path.iterdir() if p.is_dir()) == [
        ".hydra", "checkpoints", "plots", "samples", "state", "trace",
    ]  # fmt: skip


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("precious")
    with pytest.raises(ConfigError, match=r"not empty: it holds metrics\.jsonl") as caught:
        RunFolder(tmp_path).create()
    assert "run.overwrite=true" in caught.value.fix
    assert (tmp_path / "metrics.jsonl").read_text() == "precious"


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        RunFolder(tmp_path / "file").create(overwrite=True)
    with pytest.raises(ConfigError, match="cannot be made: Not a directory"):
        RunFolder(tmp_path / "file" / "run").create()


def test_overwrite_clears_records_and_keeps_checkpoints_and_strangers(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    folder.metrics.write_text("old")
    (folder.samples / "rollouts.jsonl").write_text("old")
    (folder.checkpoints / "base").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    folder.create(overwrite=True)
    assert not folder.metrics.exists()
    assert list(folder.samples.iterdir()) == []
    assert (folder.checkpoints / "base").is_dir()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(NonFiniteError, match="a figure is NaN or infinite") as caught:
        write_json(path, {"a": float("nan")})
    assert caught.value.where == str(path)
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half a surrogate \ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_an_earlier_attempt_is_moved_aside_whole(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    folder.config.write_text("seed: 0")
    assert folder.set_aside() is None  # it recorded nothing
    folder.metrics.write_text("{}\n")
    (folder.checkpoints / "sft").mkdir()
    (folder.checkpoints / "sft" / "config.json").write_text("{}")
    (folder.state / "notes").write_text("mine")
    aside = folder.set_aside()
    assert aside == tmp_path / "run" / "earlier-1"
    assert (aside / "metrics.jsonl").read_text() == "{}\n"
    assert (aside / "state" / "notes").exists()
    assert (aside / "checkpoints" / "sft" / "config.json").exists()
    folder.create()  # empty but for what was moved
    folder.metrics.write_text("[]\n")
    given = folder.checkpoints / "base"
    given.mkdir()
    assert folder.set_aside([given]) == tmp_path / "run" / "earlier-2"
    assert given.is_dir()
    assert (aside / "metrics.jsonl").exists()


def test_a_folder_in_which_a_run_was_refused_before_its_first_stage_is_free(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        folder.create()
        folder.config.write_text("seed: 0")
        folder.error_log.write_text("the sft checkpoint is not there")
    folder.create()
    assert not folder.error_log.exists()
    folder.config.write_text("seed: 0")
    folder.metrics.write_text("{}\n")
    with pytest.raises(ConfigError, match=r"it holds metrics\.jsonl"):
        folder.create()


def test_a_configuration_that_is_no_runs_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: 1")
    with pytest.raises(ConfigError, match=r"it holds config\.yaml"):
        RunFolder(tmp_path).create()

"""Checkpoints of a run on disk: what counts as whole, what is kept, what a full disk does."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.progress import progress

from orchestrator.checkpoints import model_folder
from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.sealed_json import seal, unseal
from workers.errors import BrokenCheckpointError, CheckpointError
from workers.records.processes import FileRecord

FACTS = {"config": {"seed": 0}, "versions": {"torch": "1"}}


@pytest.fixture
def runs(tmp_path: Path) -> SavedRuns:
    folder = RunFolder(tmp_path / "run").create()
    folder.metrics.write_text("123456789\n")
    sft = folder.checkpoints / "sft"
    sft.mkdir()
    (sft / "model.safetensors").write_bytes(b"weights")
    manifest = {"files": {"model.safetensors": _entry(b"weights")}}
    (sft / model_folder.MANIFEST).write_text(json.dumps(manifest))
    return SavedRuns(folder)


def _entry(data: bytes) -> dict:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _save(runs: SavedRuns, step: int, stage: str = "ppo") -> Path:
    partial = runs.begin(stage, step)
    data = b"state of the policy"
    (partial / "policy.0.safetensors").write_bytes(data)
    record = FileRecord("policy.0.safetensors", len(data), hashlib.sha256(data).hexdigest())
    known = progress(stage, step, **{"metrics.jsonl": 10})
    return runs.publish(partial, [record], known, FACTS, [])


def _newest(runs: SavedRuns) -> tuple[int | None, str]:
    saved, skipped = runs.newest()
    return (saved.step if saved else None), "; ".join(skipped)


def test_the_newest_is_found_with_what_was_saved(runs: SavedRuns) -> None:
    assert _newest(runs) == (None, "")
    _save(runs, 1)
    path = _save(runs, 2)
    saved, skipped = runs.newest()
    assert saved is not None
    assert (saved.path, saved.number, saved.stage, saved.step) == (path, 2, "ppo", 2)
    assert saved.config == {"seed": 0}
    assert saved.versions == {"torch": "1"}
    assert skipped == []


def _cut(path: Path) -> None:
    os.truncate(path / "policy.0.safetensors", 5)


def _flip(path: Path) -> None:
    file = path / "policy.0.safetensors"
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(bytes(data))


def _schema(path: Path) -> None:
    manifest = unseal(path / "manifest.json", "")
    (path / "manifest.json").write_text(seal(manifest | {"schema": 3}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_cut, "has 5 bytes instead of 19"),
        (_flip, "policy.0.safetensors was altered"),
        (lambda p: (p / "policy.0.safetensors").unlink(), "policy.0.safetensors is missing"),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda p: (p / "manifest.json").write_text("{"), "manifest.json cannot be trusted"),
        (lambda p: (p / "progress.json").write_text("{}"), "progress.json has 2 bytes"),
        (_schema, "another version of this program (schema 3, this one reads 2)"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_its_reason(
    runs: SavedRuns, damage: Callable[[Path], object], says: str
) -> None:
    _save(runs, 1)
    damage(_save(runs, 2))
    step, why = _newest(runs)
    assert step == 1
    assert why.startswith("skipped 000002-ppo-2: ")
    assert says in why


def test_a_checkpoint_needs_what_finished_stages_made(runs: SavedRuns) -> None:
    folder = runs.path.parent / "checkpoints" / "sft"
    partial = runs.begin("ppo", 1)
    known = progress("ppo", 1) | {"checkpoints": {"sft": "checkpoints/sft"}}
    path = runs.publish(partial, [], known, FACTS, [folder / model_folder.MANIFEST])
    (folder / model_folder.MANIFEST).write_text("{}")
    with pytest.raises(BrokenCheckpointError, match=r"rehearsal\.json has 2 bytes"):
        runs.read(path)
    shutil.rmtree(folder)
    with pytest.raises(BrokenCheckpointError, match=r"rehearsal\.json is missing"):
        runs.read(path)


@pytest.mark.parametrize("named", [{}, {"sft": "checkpoints/sft", "base": "checkpoints/base"}])
def test_the_models_of_finished_stages_are_those_that_are_checked(
    runs: SavedRuns, named: dict[str, str]
) -> None:
    manifest = runs.path.parent / "checkpoints" / "sft" / model_folder.MANIFEST
    known = progress("ppo", 1) | {"checkpoints": named}
    path = runs.publish(runs.begin("ppo", 1), [], known, FACTS, [manifest])
    with pytest.raises(BrokenCheckpointError, match="do not name the same models"):
        runs.read(path)


def test_records_shorter_than_they_were_are_damage(runs: SavedRuns) -> None:
    path = _save(runs, 1)
    os.truncate(runs.path.parent / "metrics.jsonl", 9)
    with pytest.raises(BrokenCheckpointError, match="shorter than the 10 bytes"):
        runs.read(path)


def test_lost_samples_are_a_note_and_a_torn_one_is_cut(runs: SavedRuns) -> None:
    folder = RunFolder(runs.path.parent)
    partial = runs.begin("ppo", 1)
    sizes = {"metrics.jsonl": 10, "samples/rollouts.jsonl": 12}
    path = runs.publish(partial, [], progress("ppo", 1, **sizes), FACTS, [])
    folder.rollouts.write_text('{"a":1}\n{"b')
    saved = runs.read(path)
    assert saved.notes == (
        "samples/rollouts.jsonl has 11 of the 12 bytes it had: samples are lost",
    )
    folder.reopen(sizes)
    assert folder.rollouts.read_text() == '{"a":1}\n'


@pytest.mark.parametrize(
    "copy", ["-backup", " (1)", ".bak", "~", ".old.superseded-x", "-2", ".partial.zip"]
)
def test_copies_beside_a_checkpoint_are_left_alone_and_do_not_count(
    runs: SavedRuns, copy: str
) -> None:
    first = _save(runs, 1)
    copied = first.with_name(first.name.replace("000001", "000009") + copy)
    shutil.copytree(first, copied)
    (runs.path / "notes-on-this.txt").write_text("mine")
    second = _save(runs, 2)
    assert second.name == "000002-ppo-2"
    assert runs.whole() == [first, second]
    runs.prune(1, 0)
    runs.continue_from(runs.read(second))
    assert (copied / "manifest.json").is_file()


def test_what_is_moved_aside_never_replaces_what_lies_there(runs: SavedRuns) -> None:
    first, second = _save(runs, 1), _save(runs, 2)
    aside = second.with_name(second.name + ".superseded")
    aside.mkdir()
    (aside / "mine").touch()
    runs.continue_from(runs.read(first))
    assert (aside / "mine").exists()
    assert second.with_name(second.name + ".superseded-2").is_dir()
    assert _save(runs, 2).name == "000003-ppo-2"


def test_whole_ones_under_other_names_are_found_and_get_their_name_back(runs: SavedRuns) -> None:
    first, second = _save(runs, 1), _save(runs, 2)
    aside = second.rename(second.with_name(second.name + ".superseded"))
    copy = shutil.copytree(first, first.with_name(first.name + "-backup"))
    broken = shutil.copytree(first, first.with_name("another"))
    _flip(broken)
    assert runs.under_other_names() == [copy, aside]
    saved = runs.continue_from(runs.read(aside))
    assert (saved.path.name, saved.number, saved.step) == ("000003-ppo-2", 3, 2)
    assert not aside.exists()
    assert runs.whole() == [first, saved.path]
    saved = runs.continue_from(runs.read(copy))
    assert saved.path.name == "000004-ppo-1"
    assert (copy / "manifest.json").is_file()
    assert _save(runs, 2).name == "000005-ppo-2"


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("000009-ppo-2", "000002-ppo-2"),
        ("000002-ppo-7", "000002-ppo-2"),
        ("000002-sft-2", "000002-ppo-2"),
        ("000001-ppo-1", "000002-ppo-2"),
    ],
)
def test_the_exact_name_of_another_checkpoint_is_refused_with_its_own(
    runs: SavedRuns, name: str, right: str
) -> None:
    first, path = _save(runs, 1), _save(runs, 2)
    shutil.rmtree(first)
    assert path.name == right
    renamed = path.rename(path.with_name(name))
    with pytest.raises(BrokenCheckpointError, match=f"saved as {right} and renamed") as caught:
        runs.read(renamed)
    assert caught.value.where == str(renamed)
    assert caught.value.fix.startswith(f"give it the name {right};")
    assert _newest(runs)[0] is None
    renamed.rename(path)
    assert _newest(runs) == (2, "")


def test_a_manifest_without_a_number_tells_stage_and_step_alone(runs: SavedRuns) -> None:
    path = _save(runs, 2)
    manifest = unseal(path / "manifest.json", "")
    del manifest["number"]
    (path / "manifest.json").write_text(seal(manifest))
    other = path.rename(path.with_name("000009-ppo-2"))
    assert runs.read(other).number == 9
    step = other.rename(path.with_name("000009-ppo-3"))
    with pytest.raises(BrokenCheckpointError, match="saved as 000009-ppo-2"):
        runs.read(step)


def test_going_on_from_a_copy_numbers_what_is_made_of_it_and_not_the_copy(runs: SavedRuns) -> None:
    first, second, third = (_save(runs, step) for step in (1, 2, 3))
    copy = shutil.copytree(second, second.with_name(second.name + "-backup"))
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    saved = runs.continue_from(runs.read(copy))
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before
    assert unseal(saved.path / "manifest.json", "") == (
        unseal(second / "manifest.json", "") | {"number": 4}
    )
    again = runs.read(saved.path)
    assert (again.path.name, again.number, again.step) == ("000004-ppo-2", 4, 2)
    assert runs.whole() == [first, second, saved.path]  # only what is newer is moved aside
    assert third.with_name(third.name + ".superseded").is_dir()


@pytest.mark.parametrize(
    ("whole", "aside"), [(True, "000002-ppo-2.superseded"), (False, "000002-ppo-2.broken")]
)
def test_what_was_all_written_but_not_renamed_is_moved_aside(
    runs: SavedRuns, whole: bool, aside: str
) -> None:
    first, second = _save(runs, 1), _save(runs, 2)
    second.rename(second.with_name(second.name + ".partial"))
    if not whole:
        _cut(second.with_name(second.name + ".partial"))
    runs.continue_from(runs.read(first))
    assert sorted(p.name for p in runs.path.iterdir()) == [first.name, aside]
    assert (runs.path / aside / "manifest.json").is_file()


@pytest.mark.parametrize(
    "name", ["mine.partial", "000002-ppo-2-backup.partial", "000002-ppo.partial", ".partial"]
)
@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_of_another_name_that_ends_in_partial_is_left_alone(
    runs: SavedRuns, name: str, whole: bool
) -> None:
    first, second = _save(runs, 1), _save(runs, 2)
    theirs = second.rename(second.with_name(name))
    if not whole:
        (theirs / "manifest.json").unlink()
    before = sorted(p.name for p in theirs.iterdir())
    runs.continue_from(runs.read(first))
    assert sorted(p.name for p in runs.path.iterdir()) == sorted([first.name, name])
    assert sorted(p.name for p in theirs.iterdir()) == before


def test_every_flipped_bit_of_a_manifest_is_damage(runs: SavedRuns) -> None:
    path = _save(runs, 1)
    file = path / "manifest.json"
    good = file.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        file.write_bytes(bytes(bad))
        with pytest.raises(BrokenCheckpointError):
            runs.read(path)
    file.write_bytes(good)
    assert runs.read(path).step == 1


def test_a_save_that_was_killed_leaves_nothing_to_read(runs: SavedRuns) -> None:
    _save(runs, 1)
    partial = runs.begin("ppo", 2)
    (partial / "policy.0.safetensors").write_bytes(b"half")
    saved, skipped = runs.newest()
    assert saved is not None
    assert (saved.step, skipped) == (1, [])
    runs.continue_from(saved)
    assert not partial.exists()


def test_going_back_moves_newer_ones_aside(runs: SavedRuns) -> None:
    first, second, third = (_save(runs, step) for step in (1, 2, 3))
    _cut(third)
    runs.continue_from(runs.read(first))
    assert runs.whole() == [first]
    assert second.with_name(second.name + ".superseded").is_dir()
    assert third.with_name(third.name + ".broken").is_dir()
    assert _save(runs, 2).name == "000004-ppo-2"  # no number is used twice


@pytest.mark.parametrize(
    ("last", "every", "left"),
    [(1, 0, [7]), (2, 0, [6, 7]), (1, 3, [3, 6, 7]), (9, 0, [1, 2, 3, 4, 5, 6, 7])],
)
def test_pruning(runs: SavedRuns, last: int, every: int, left: list[int]) -> None:
    for step in range(1, 8):
        _save(runs, step)
        runs.prune(last, every)
    assert [int(p.name.rpartition("-")[2]) for p in runs.whole()] == left


def test_what_is_kept_by_name_stays(runs: SavedRuns) -> None:
    first, _, third = (
        _save(runs, step, stage) for step, stage in ((1, "ppo"), (2, "ppo"), (1, "sft"))
    )
    runs.prune(1, 0, {first})
    assert runs.whole() == [first, third]
    assert runs.steps() == {"ppo": {1: first}, "sft": {1: third}}


def test_a_checkpoint_can_be_read_for_itself_alone(runs: SavedRuns) -> None:
    path = _save(runs, 1)
    os.truncate(runs.path.parent / "metrics.jsonl", 0)
    with pytest.raises(BrokenCheckpointError, match="shorter"):
        runs.read(path)
    assert runs.read(path, alone=True).step == 1
    _flip(path)
    with pytest.raises(BrokenCheckpointError, match="was altered"):
        runs.read(path, alone=True)


def test_a_run_folder_that_vanished_is_not_made_anew(runs: SavedRuns) -> None:
    shutil.rmtree(runs.path.parent)
    with pytest.raises(CheckpointError, match="No such file") as gone:
        runs.begin("ppo", 1)
    assert "put the folder back" in gone.value.fix
    assert not runs.path.parent.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_a_typed_error_and_the_last_one_stays(
    runs: SavedRuns, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    _save(runs, 1)
    partial = runs.begin("ppo", 2)

    def fail(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(model_folder, "flush", fail)
        with pytest.raises(CheckpointError, match=os.strerror(number)) as caught:
            runs.publish(partial, [], progress("ppo", 2), FACTS, [])
    assert isinstance(caught.value, OSError)
    assert caught.value.exit_code == 4
    assert "resume=auto" in caught.value.fix
    runs.discard(partial)
    assert _newest(runs) == (1, "")
    with pytest.raises(CheckpointError, match="Not a directory"):
        SavedRuns(RunFolder(runs.path.parent / "metrics.jsonl")).begin("ppo", 1)

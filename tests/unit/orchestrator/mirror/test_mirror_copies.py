"""Copies of checkpoints in a mirror: what they hold, when they count, and which are deleted."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from fakes.mirrors import ALL, World, files_of, forever, publish

from orchestrator.mirror.claim import complete_names
from orchestrator.mirror.pruning import Keep
from orchestrator.mirror.restoring import restore
from orchestrator.run_files.folder import RunFolder
from workers.errors import BrokenCheckpointError, CheckpointError, ConfigError, MirrorError


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def restored(world: World, name: str = "elsewhere") -> RunFolder:
    folder = RunFolder(world.path / name)
    folder.path.mkdir(exist_ok=True)
    restore(world.another_store(), folder, world.claim(folder), pause=lambda seconds: None)
    return folder


def copied(world: World, *paths: Path, keep: Keep = ALL) -> None:
    mirror = world.mirror()
    for path in paths:
        mirror.submit(path, keep)
        mirror.finish(forever)


def test_a_copy_restores_every_byte_that_a_resume_reads(world: World) -> None:
    world.folder.losses.write_text('{"lost": 1}\n')
    path = world.save(1)
    before = files_of(world.folder)
    with world.folder.metrics.open("a") as file:
        file.write('{"step": "after the checkpoint"}\n')
    copied(world, path)
    assert files_of(restored(world)) == before


def test_models_are_copied_once_and_readable_under_their_name(world: World) -> None:
    written: list[str] = []
    first, second = world.save(1), world.save(2)
    world.faults.on_write = written.append
    copied(world, first, second)
    weights = [name for name in written if name.endswith("/model.safetensors")]
    assert len(weights) == 1
    assert weights[0].startswith(f"{world.root}/models/sft-")


def test_a_model_that_was_trained_again_does_not_replace_the_one_of_older_copies(
    world: World,
) -> None:
    first = world.save(1)
    before = files_of(world.folder)
    copied(world, first)
    publish(world.folder, "sft", 2)
    copied(world, world.save(2))
    world.system.rm_file(f"{world.root}/copies/000002-ppo-2/complete.json")
    assert files_of(restored(world)) == before


def test_the_marker_is_written_last(world: World) -> None:
    written: list[str] = []
    world.faults.on_write = written.append
    copied(world, world.save(1))
    assert written[-1] == f"{world.root}/copies/000001-ppo-1/complete.json"
    assert written.index(f"{world.root}/copies/000001-ppo-1/begun.json") < 4


def test_every_third_write_fails_and_all_copies_arrive(world: World) -> None:
    mirror = world.mirror()
    world.faults.every = 3
    for step in range(1, 5):
        mirror.submit(world.save(step), ALL)
        mirror.finish(forever)
    world.faults.every = 0
    assert mirror.totals().copied == 4
    assert mirror.totals().failures > 0
    assert mirror.totals().trouble == ""
    assert complete_names(world.store) == [f"00000{step}-ppo-{step}" for step in range(1, 5)]
    assert (restored(world).state / "000004-ppo-4").is_dir()
    assert any("connection was reset" in told for told in world.said)


def test_a_copy_that_was_killed_in_the_middle_does_not_count_and_is_cleaned_up(
    world: World,
) -> None:
    first, second = world.save(1), world.save(2, b"other")
    copied(world, first)
    mirror = world.mirror()

    def power_cut(path: str) -> None:
        if path.endswith("000002-ppo-2/metrics.jsonl"):
            world.faults.error = ConnectionError("gone")

    world.faults.on_write = power_cut
    mirror.submit(second, ALL)
    mirror.finish(lambda: -1.0 if world.faults.error else 1.0)
    world.faults.error, world.faults.on_write = None, lambda path: None
    assert "copies/000002-ppo-2/begun.json" in world.objects()
    assert (restored(world).state / "000001-ppo-1").is_dir()
    copied(world, world.save(3, b"third"))
    assert not [name for name in world.objects() if name.startswith("copies/000002-ppo-2/")]


@pytest.mark.parametrize(
    "name",
    [
        "copies/000002-ppo-2/state/000002-ppo-2/policy.0.safetensors",
        "copies/000002-ppo-2/metrics.jsonl",
        "copies/000002-ppo-2/complete.json",
    ],
)
@pytest.mark.parametrize("how", ["cut", "changed", "missing", "longer"])
def test_a_damaged_object_makes_the_older_copy_count(world: World, name: str, how: str) -> None:
    first = world.save(1)
    before = files_of(world.folder)
    copied(world, first, world.save(2, b"the second state"))
    data = world.objects()[name]
    if how == "missing":
        world.system.rm_file(f"{world.root}/{name}")
    else:
        changed = {"cut": data[:-2], "longer": data + b"x", "changed": b"~" + data[1:]}
        world.put(name, changed[how])
    assert files_of(restored(world)) == before


def test_a_marker_older_than_the_state_does_not_count(world: World) -> None:
    copied(world, world.save(1))
    world.put("copies/000001-ppo-1/state/000001-ppo-1/policy.0.safetensors", b"STATE")
    with pytest.raises(BrokenCheckpointError, match="none of 1 copies") as caught:
        restored(world)
    assert "policy.0.safetensors is not what the copy lists" in caught.value.what


def test_copies_are_pruned_as_in_the_run_folder(world: World) -> None:
    mirror = world.mirror()
    for step in range(1, 8):
        mirror.submit(world.save(step), Keep(2, 3, frozenset({"000002-ppo-2"})))
        mirror.finish(forever)
    assert mirror.names == ("000002-ppo-2", "000003-ppo-3", "000006-ppo-6", "000007-ppo-7")
    homes = {name.split("/")[1] for name in world.objects() if name.startswith("copies/")}
    assert homes == {*mirror.names}


def test_nothing_is_deleted_that_no_record_of_the_run_lists(world: World) -> None:
    mirror = world.mirror()
    theirs = {
        "notes.txt": b"mine", "copies/000001-ppo-1/notes.txt": b"mine", "models/x/y": b"mine",
        "copies/000000-ppo-0/complete.json": b"{}", "copies/000000-ppo-0/state/x": b"mine",
    }  # fmt: skip
    for name, data in theirs.items():
        world.put(name, data)
    for step in range(1, 4):
        mirror.submit(world.save(step), Keep(1, 0, frozenset()))
        mirror.finish(forever)
    assert mirror.names == ("000003-ppo-3",)
    assert {name: world.objects().get(name) for name in theirs} == theirs


def test_models_go_with_the_last_copy_that_uses_them(world: World) -> None:
    publish(world.folder, "large", 5)
    mirror = world.mirror()
    mirror.submit(world.save(1), ALL)
    mirror.finish(forever)
    publish(world.folder, "large", 6)
    mirror.submit(world.save(2), Keep(1, 0, frozenset()))
    mirror.finish(forever)
    models = {name.split("/")[1] for name in world.objects() if name.startswith("models/")}
    assert sorted(name.rpartition("-")[0] for name in models) == ["large", "sft"]


def test_a_slow_mirror_copies_the_newest_and_pins_what_it_copies(world: World) -> None:
    mirror = world.mirror()
    world.faults.block = threading.Event()
    first = world.save(1)
    mirror.submit(first, ALL)
    while mirror.pinned() != {first}:
        pass
    second, third = world.save(2), world.save(3)
    mirror.submit(second, ALL)
    mirror.submit(third, ALL)
    assert mirror.pinned() <= {first, third}
    assert third in mirror.pinned()
    world.faults.block.set()
    mirror.finish(forever)
    assert mirror.totals().skipped >= 1
    assert complete_names(world.store)[-1] == "000003-ppo-3"
    assert mirror.pinned() == set()


def test_a_mirror_that_never_answers_ends_by_its_deadline_with_a_note(world: World) -> None:
    mirror = world.mirror()
    mirror._store._seconds = 0.05
    world.faults.block = threading.Event()
    mirror.submit(world.save(1), ALL)
    mirror.finish(lambda: 0.3 - 0.1 * mirror.totals().failures)
    world.faults.block.set()
    assert mirror.totals().newest == ""
    assert "did not answer within 0.05 s" in mirror.totals().trouble
    assert world.said[-1].startswith("000001-ppo-1 is not in the mirror")


def test_a_checkpoint_that_was_altered_on_the_local_disk_is_never_a_copy(world: World) -> None:
    good, bad = world.save(1), world.save(2)
    (bad / "policy.0.safetensors").write_bytes(b"STATE")
    mirror = world.mirror()
    mirror.submit(good, ALL)
    mirror.finish(forever)
    mirror.submit(bad, ALL)
    mirror.finish(lambda: 1.0 - mirror.totals().failures)
    assert complete_names(world.store) == ["000001-ppo-1"]
    assert "altered after it was saved" in mirror.totals().trouble


def test_a_checkpoint_that_was_moved_aside_is_dropped_quietly(world: World) -> None:
    path = world.save(1)
    path.rename(path.with_name(path.name + ".superseded"))
    copied(world, path)
    assert complete_names(world.store) == []
    assert world.said == []


def test_the_results_are_readable_in_the_mirror(world: World) -> None:
    world.folder.summary.write_text("{}")
    mirror = world.mirror()
    mirror.submit(world.save(1), ALL)
    mirror.finish(forever)
    mirror.results(forever)
    found = {name for name in world.objects() if name.startswith("results/")}
    assert {"results/summary.json", "results/metrics.jsonl", "results/config.yaml"} <= found


def test_an_empty_folder_adopts_the_run_and_a_second_run_is_refused(world: World) -> None:
    copied(world, world.save(1))
    other = RunFolder(world.path / "other").create()
    with pytest.raises(ConfigError, match="already holds a run"):
        world.claim(other, "")
    assert world.claim(other, "auto") == world.claim(world.folder, str(world.folder.path))
    (other.state / "000001-sft-1").mkdir()
    with pytest.raises(ConfigError, match="belongs to another run"):
        world.claim(other, "auto")


def test_a_process_that_was_replaced_stops_writing_and_says_so(world: World) -> None:
    old = world.mirror()
    copied(world, world.save(1))
    before = world.objects()
    old.submit(world.save(2), Keep(1, 0, frozenset()))
    old.finish(forever)
    assert world.objects() == before
    assert any("another process writes this mirror now" in told for told in world.said)
    old.submit(world.save(3), ALL)
    assert old.pinned() == set()


def test_an_older_run_folder_is_set_aside_and_the_newer_copy_restored(world: World) -> None:
    copied(world, world.save(1), world.save(2))
    stale = RunFolder(world.path / "stale")
    restored(world, "stale")
    copied(world, world.save(3))
    found = restore(world.store, stale, world.claim(stale))
    assert found is not None
    assert (stale.state / "000003-ppo-3").is_dir()
    assert (stale.path / "earlier-1" / "state" / "000002-ppo-2").is_dir()
    assert restore(world.store, stale, world.claim(stale)) is None


def test_a_run_folder_that_went_back_is_not_undone(world: World) -> None:
    copied(world, world.save(1), path := world.save(2))
    path.rename(path.with_name(path.name + ".superseded"))
    assert restore(world.store, world.folder, world.claim(world.folder)) is None


def test_a_copy_larger_than_the_free_disk_is_refused(world: World) -> None:
    copied(world, world.save(1))
    name = "copies/000001-ppo-1/complete.json"
    from orchestrator.run_files.sealed_json import seal, unsealed

    plain = unsealed(world.objects()[name])
    plain["files"]["config.yaml"]["bytes"] = 1 << 43
    world.put(name, seal(plain).encode())
    with pytest.raises(CheckpointError, match="no room to restore"):
        restored(world)


def test_an_unreachable_mirror_is_no_reason_to_take_an_older_copy(world: World) -> None:
    copied(world, world.save(1), world.save(2))
    claim = world.claim(RunFolder(world.path / "none"))
    folder = RunFolder(world.path / "none").create()

    def reset(path: str) -> None:
        world.faults.error = ConnectionError("reset")

    pauses: list[float] = []
    store = world.another_store()
    fetch = store.fetch
    store.fetch = lambda *each: (reset(""), fetch(*each))[1]  # type: ignore[method-assign]
    with pytest.raises(MirrorError, match="reset"):
        restore(store, folder, claim, pause=pauses.append)
    assert pauses == [2.0, 4.0, 8.0]
    assert json.dumps(sorted(p.name for p in folder.state.iterdir())) == "[]"

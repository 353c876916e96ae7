"""What a run does with its mirror at its start and its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fakes.mirrors import ALL, World, files_of, forever, made_folder, save

from orchestrator.checkpoints.best import Scores
from orchestrator.config.run import CheckpointConfig, RunConfig
from orchestrator.config.schema import Config
from orchestrator.mirror.background import Mirror
from orchestrator.mirror.claim import find_claim, take
from orchestrator.mirror.connect import connect
from orchestrator.mirror.opening import mirror_outlook, mirrored, open_mirror
from orchestrator.process.stop_signals import StopRequest
from orchestrator.run_files.folder import RunFolder
from orchestrator.session.saves import Saves
from workers.errors import BrokenCheckpointError, ConfigError, MirrorError, StoppedError


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The configuration of a run in another folder than the one whose copy is in the mirror."""
    there = RunConfig(dir=str(tmp_path / "run"), mirror=f"file://{tmp_path}/mirror")
    folder, store = made_folder(tmp_path / "run"), connect(there)
    mirror = Mirror(store, folder, find_claim(store, folder, ""))
    mirror.begin()
    mirror.submit(save(folder, 1), ALL)
    mirror.finish(forever)
    there.dir = str(tmp_path / "elsewhere")
    return Config(run=there, resume="auto")


def test_an_empty_folder_is_restored_once(tmp_path: Path, config: Config) -> None:
    folder = RunFolder(tmp_path / "elsewhere")
    assert mirror_outlook(config, folder) == [
        f"restores 000001-ppo-1 from file://{tmp_path}/mirror and continues after it"
    ]
    folder.path.mkdir()
    mirror, notes = open_mirror(config, folder)
    assert mirror is not None
    assert [note.partition(":")[0] for note in notes] == ["restored 000001-ppo-1 from file"]
    assert files_of(folder) == files_of(RunFolder(tmp_path / "run"))
    assert mirror_outlook(config, folder) == []
    assert open_mirror(config, folder)[1] == []
    config.run.mirror = ""
    assert open_mirror(config, folder) == (None, [])


def test_another_resume_than_auto_does_not_pass_over_a_newer_copy(
    tmp_path: Path, config: Config
) -> None:
    folder = RunFolder(tmp_path / "elsewhere")
    folder.path.mkdir()
    open_mirror(config, folder)
    for each in (folder.state / "000001-ppo-1").iterdir():
        each.unlink()
    (folder.state / "000001-ppo-1").rmdir()
    config.resume = str(folder.path)
    with pytest.raises(ConfigError, match="holds 000001-ppo-1, which is newer"):
        open_mirror(config, folder)


def test_a_restore_that_was_killed_is_repeated(tmp_path: Path, config: Config) -> None:
    folder = RunFolder(tmp_path / "elsewhere").create()
    left = folder.restoring / "state" / "000001-ppo-1"
    left.mkdir(parents=True)
    (left / "progress.json").write_text("half")
    open_mirror(config, folder)
    assert files_of(folder) == files_of(RunFolder(tmp_path / "run"))


class Recorder:
    """Stands for a mirror; notes which methods the end of a run calls, and with how much time."""

    def __init__(self) -> None:
        self.called: list[tuple[str, int]] = []
        self.tell: Callable[[str], object] = print

    def finish(self, left: Callable[[], float]) -> None:
        self.called.append(("finish", round(left())))

    def results(self, left: Callable[[], float]) -> None:
        self.called.append(("results", round(left())))


def end(error: BaseException | None, stop: StopRequest | None = None) -> list[tuple[str, int]]:
    recorder: Any = Recorder()
    with suppress(type(error) if error else ()), mirrored(recorder, 50.0, stop or StopRequest()):
        if error is not None:
            raise error
    return recorder.called


def test_a_run_that_fails_copies_what_it_has_and_one_that_is_interrupted_does_not_wait() -> None:
    assert end(None) == [("results", 50)]
    assert end(ValueError()) == [("finish", 50), ("results", 50)]
    assert end(KeyboardInterrupt()) == []


def test_a_signal_leaves_the_mirror_the_rest_of_the_grace() -> None:
    stop = StopRequest()
    stop.grace_seconds = 20.0
    stop.handle(15, None)
    stop.close()
    assert end(StoppedError("stopped"), stop) == [("finish", 20), ("results", 20)]


def test_a_torn_identity_is_replaced_while_there_is_no_copy(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.put("identity.json", b'{"run": "ab')
    world.mirror(resume="")
    assert json.loads(world.objects()["identity.json"])["run"]
    world = World(tmp_path / "other")
    mirror = world.mirror()
    mirror.submit(world.save(1), ALL)
    mirror.finish(forever)
    world.put("identity.json", b'{"run": "ab')
    with pytest.raises(BrokenCheckpointError):
        world.claim(world.folder)


def test_two_runs_that_start_at_once_do_not_both_take_the_mirror(tmp_path: Path) -> None:
    world = World(tmp_path)
    other = RunFolder(tmp_path / "other").create()
    first, second = world.claim(world.folder, ""), world.claim(other, "")
    take(world.store, world.folder, first)
    with pytest.raises(ConfigError, match="taken by another run just now"):
        take(world.store, other, second)


def test_an_emptied_mirror_is_a_failure_and_not_another_run(tmp_path: Path) -> None:
    world = World(tmp_path)
    mirror = world.mirror()
    world.system.rm(world.root, recursive=True)
    mirror.submit(world.save(1), ALL)
    mirror.finish(lambda: 1.0 - mirror.totals().failures)
    assert "has lost its records" in mirror.totals().trouble
    assert world.objects() == {}


def test_the_best_checkpoint_stays_in_the_mirror_after_the_run_folder_was_lost(
    tmp_path: Path,
) -> None:
    class Copies:
        names = ("000001-ppo-1", "000002-ppo-2", "000003-ppo-3")

        def __init__(self) -> None:
            self.kept: frozenset[str] = frozenset()

        def submit(self, path: Path, keep: Any) -> None:
            self.kept = keep.names

        def pinned(self) -> set[Path]:
            return set()

    folder = made_folder(tmp_path / "run")
    scores = Scores("ppo/gold_mean", values={"ppo": {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.2}})
    copies: Any = Copies()
    saves = Saves(folder, CheckpointConfig(keep_best="ppo/gold_mean"), scores=scores, mirror=copies)
    saves.scores.values = {"ppo": {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.2}}
    path = save(folder, 4)
    path = path.rename(path.with_name("000004-ppo-4"))
    saves._copy(path)
    assert copies.kept == {"000002-ppo-2"}
    saves._prune()
    assert saves.scores.best("ppo", [1, 2, 3, 4]) == 2


def test_a_store_that_cannot_be_read_is_no_empty_mirror(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults.error = PermissionError("denied")
    with pytest.raises(MirrorError, match="refuses access"):
        world.claim(world.folder)
    assert world.faults.writes == 0

"""Restore the newest complete copy of a mirror into a run folder.

Everything is fetched into RUN/.restoring and checked there, by the copy's record and then as any
checkpoint is; only then is it moved into place, the checkpoint itself last.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from orchestrator.checkpoints import model_folder
from orchestrator.checkpoints.contents import number_of
from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.mirror.claim import Claim, complete_names, own
from orchestrator.mirror.records import MOST_RECORD_BYTES, Copy, complete, copy_of
from orchestrator.mirror.store import Store
from orchestrator.run_files.folder import RunFolder
from workers.errors import BrokenCheckpointError, CheckpointError, MirrorError
from workers.process.disk import writing

T = TypeVar("T")
_ATTEMPTS = 4  # per object
_PAUSE = 2.0  # seconds before the second attempt; doubles


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored, as notes for the user."""

    name: str
    notes: tuple[str, ...]


def newer_names(store: Store, folder: RunFolder) -> list[str]:
    """Complete copies that are newer than every checkpoint that the run folder ever had.

    Checkpoints that were moved aside count, so that a run which went back is not undone.
    """
    entries = folder.state.iterdir() if folder.state.is_dir() else ()
    newest = max(map(number_of, entries), default=0)
    return [name for name in complete_names(store) if number_of(Path(name)) > newest]


def restore(
    store: Store,
    folder: RunFolder,
    claim: Claim,
    kept: Collection[Path] = (),
    pause: Callable[[float], object] = time.sleep,
) -> Restored | None:
    """Restore the newest copy that is whole, if the run folder is older.

    Args:
        store: The mirror.
        folder: The run folder, locked.
        claim: The run's identity.
        kept: See `RunFolder.set_aside`.
        pause: Waits between two attempts.

    Returns:
        None if there is no newer copy.

    Raises:
        BrokenCheckpointError: there are newer copies, and none is whole.
        CheckpointError: the disk is full or read-only.
        MirrorError: the mirror cannot be read.
    """
    names = newer_names(store, folder)
    notes: list[str] = []
    for name in reversed(names):
        try:
            copy = _fetch(store, folder, claim.run, name, pause)
        except BrokenCheckpointError as error:
            _remove(folder.restoring)
            notes.append(f"skipped the mirror's {name}: {error.what}, in {error.where}")
            continue
        aside = _put(folder, copy, claim, kept)
        notes += [f"the older content of the run folder was moved to {aside}"] if aside else []
        notes.append(f"restored {name} from {store.url}: {copy.total:,} bytes")
        return Restored(name, tuple(notes))
    if names:
        raise BrokenCheckpointError(
            f"none of {len(names)} copies in the mirror is whole; " + "; ".join(notes),
            where=store.url,
            fix="restore the objects, or start afresh with another run.mirror",
        )
    return None


def read_copy(store: Store, run: str, name: str, marker: str) -> Copy:
    """The record of a copy, checked.

    Args:
        store: The mirror.
        run: The run that it belongs to.
        name: The checkpoint.
        marker: The object: `complete(name)` or `begun(name)`.

    Raises:
        BrokenCheckpointError: it is missing or damaged, or names what no copy holds.
        MirrorError: the mirror cannot be read.
    """
    data = store.read(marker, MOST_RECORD_BYTES)
    return copy_of(data or b"", store.place(marker), run, name)


def _fetch(
    store: Store, folder: RunFolder, run: str, name: str, pause: Callable[[float], object]
) -> Copy:
    """Fetch a copy into the folder for it, and check it there."""

    def tried(work: Callable[[], T]) -> T:
        for attempt in range(_ATTEMPTS - 1):
            try:
                return work()
            except MirrorError:
                pause(_PAUSE * 2**attempt)
        return work()

    copy = tried(lambda: read_copy(store, run, name, complete(name)))
    _remove(folder.restoring)
    _require_space(folder, copy)
    for path, stored in copy.files.items():
        target = folder.restoring / path
        with writing(target, "the restored file"):
            target.parent.mkdir(parents=True, exist_ok=True)
        digest = tried(lambda s=stored, t=target: store.fetch(s.object, t, s.bytes))
        if digest != stored.sha256:
            raise BrokenCheckpointError(
                f"{path} is not what the copy lists",
                where=store.place(stored.object),
                fix="an older copy in the mirror may be whole",
            )
        with writing(target, "the restored file"):
            model_folder.flush(target)
    staged = RunFolder(folder.restoring)
    SavedRuns(staged).read(staged.state / name)
    return copy


def _require_space(folder: RunFolder, copy: Copy) -> None:
    free = shutil.disk_usage(folder.path).free
    if free < copy.total:
        raise CheckpointError(
            f"no room to restore {copy.name}: {copy.total:,} bytes, {free:,} are free",
            where=str(folder.path),
            fix="free space on that disk, or choose another run.dir",
        )


def _put(folder: RunFolder, copy: Copy, claim: Claim, kept: Collection[Path]) -> Path | None:
    """Move the fetched files into place; a checkpoint without its folder is not found by anyone."""
    staged = RunFolder(folder.restoring)
    with writing(folder.path, "the run folder"):
        aside = folder.set_aside(kept)
        for directory in folder.directories:
            directory.mkdir(exist_ok=True)
        last = staged.state / copy.name
        for path in copy.files:
            source, target = staged.path / path, folder.path / path
            if last not in source.parents:
                target.parent.mkdir(parents=True, exist_ok=True)
                source.replace(target)
        own(folder, claim)
        last.rename(folder.state / copy.name)
        model_folder.flush(folder.state)
    _remove(folder.restoring)
    return aside


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)

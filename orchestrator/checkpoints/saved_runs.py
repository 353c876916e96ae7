"""Checkpoints of a run: one folder per saved step, published atomically, checked when read.

`state/000007-ppo-12/` contains one file per trainer rank, progress.json with the driver's state,
and manifest.json with size and hash of all these. The folder is written as `.partial`, flushed and
renamed, so a name without a suffix is a complete checkpoint; hashes detect later damage.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from os.path import lexists
from pathlib import Path
from typing import Any

from orchestrator.checkpoints import model_folder
from orchestrator.checkpoints.config_changes import saved_values
from orchestrator.checkpoints.contents import (
    BROKEN,
    FIX,
    MANIFEST,
    NAME,
    PARTIAL,
    PROGRESS,
    SCHEMA_VERSION,
    SUPERSEDED,
    Entry,
    Manifest,
    broken,
    check_all,
    check_files,
    check_name,
    check_places,
    entry_of,
    manifest_of,
    number_of,
    renumber,
)
from orchestrator.checkpoints.given_inputs import Files
from orchestrator.checkpoints.ppo_state import check_own
from orchestrator.checkpoints.progress import Place, Progress
from orchestrator.run_files.dataclass_json import from_plain
from orchestrator.run_files.folder import RunFolder, write_json
from workers.errors import CheckpointError, RehearsalError
from workers.model_folders.files import read_json, require_file
from workers.process.disk import writing
from workers.process.library_errors import reading
from workers.records.processes import FileRecord


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A checkpoint that was read and is complete."""

    path: Path
    number: int  # counts the checkpoints of a run; a copy has the number of its original
    stage: str
    step: int  # last finished step of the stage
    progress: dict[str, Any]
    config: dict[str, Any]  # the resolved configuration when it was saved
    versions: dict[str, str]  # of the packages
    # the input files of the run when it was saved
    inputs: Mapping[str, Files] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # on missing files that no remaining stage needs

    @property
    def folder(self) -> RunFolder:
        """The run folder that it belongs to."""
        return RunFolder(self.path.parent.parent)

    def __str__(self) -> str:
        return f"stage {self.stage}, step {self.step} ({self.path.name})"


Needs = Callable[[str, Collection[str]], Collection[str]]


class SavedRuns:
    """The checkpoints in one run folder."""

    def __init__(self, run: RunFolder, needs: Needs | None = None) -> None:
        """Store the arguments; nothing is read yet.

        Args:
            run: The run folder.
            needs: Function of the current stage and the finished stages that returns the names of
                the models still needed; others may be missing. None: all are needed.
        """
        self._run = run
        self._needs = needs
        self.path = run.state

    def whole(self) -> list[Path]:
        """Published checkpoints, oldest first."""
        return sorted(
            (p for p in self._entries() if NAME.fullmatch(p.name) and p.is_dir()), key=number_of
        )

    def _entries(self) -> list[Path]:
        return list(self.path.iterdir()) if self.path.is_dir() else []

    def begin(self, stage: str, step: int) -> Path:
        """Create an empty folder for trainers to write into.

        Raises:
            CheckpointError: it cannot be created.
        """
        partial = self.path / f"{self._next():06d}-{stage}-{step}{PARTIAL}"
        with writing(partial, "the checkpoint"):
            partial.mkdir()  # without parents: a deleted run folder must not be created again
        return partial

    def _next(self) -> int:
        return 1 + max(map(number_of, self._entries()), default=0)

    def publish(
        self,
        partial: Path,
        records: Iterable[FileRecord],
        progress: Mapping[str, Any],
        facts: Mapping[str, Any],
        products: Iterable[Path],
    ) -> Path:
        """Turn a folder from `begin` into a checkpoint.

        Args:
            partial: the folder; all files in `records` are in it and flushed to disk.
            records: the files that the trainers wrote.
            progress: the driver's state, JSON-ready.
            facts: configuration and versions, JSON-ready.
            products: files elsewhere in the run folder that the checkpoint relies on.

        Raises:
            CheckpointError: the disk is full or read-only; earlier checkpoints are intact.
        """
        with writing(partial, "the checkpoint"):
            write_json(partial / PROGRESS, dict(progress))
            files = {r.name: {"bytes": r.nbytes, "sha256": r.sha256} for r in records}
            files[PROGRESS] = entry_of(partial / PROGRESS)
            elsewhere = {str(p.relative_to(self._run.path)): entry_of(p) for p in products}
            manifest = {"files": files, "elsewhere": elsewhere, "number": number_of(partial)}
            manifest = {"schema": SCHEMA_VERSION, **facts, **manifest}
            write_json(partial / MANIFEST, manifest, sealed=True)
            model_folder.flush(partial)
            final = partial.with_suffix("")
            partial.rename(final)
            for folder in (self.path, self._run.path, self._run.path.parent):
                model_folder.flush(folder)  # its entries, so that a power cut does not lose them
        return final

    def discard(self, partial: Path) -> None:
        """Delete an unfinished folder from `begin`."""
        shutil.rmtree(partial, ignore_errors=True)

    def steps(self) -> dict[str, dict[int, Path]]:
        """The newest published checkpoint of each step of each stage."""
        return {
            stage: {step: self.path / name for step, name in steps.items()}
            for stage, steps in steps_of(path.name for path in self.whole()).items()
        }

    def prune(self, keep_last: int, keep_every: int, kept: Collection[Path] = ()) -> None:
        """Delete all but the newest `keep_last`, multiples of `keep_every` steps, and `kept`.

        Call it right after `publish`, so that the new checkpoint is among the newest. A user's copy
        that has the exact name of another checkpoint is not deleted.
        """
        names = [path.name for path in self.whole()]
        for name in superfluous(names, keep_last, keep_every, {path.name for path in kept}):
            if _has_own_name(self.path / name):
                shutil.rmtree(self.path / name, ignore_errors=True)

    def read(self, path: Path, *, alone: bool = False) -> SavedRun:
        """Read a checkpoint after checking size and hash of every file it relies on.

        Args:
            path: Its folder.
            alone: Check only the files in that folder, because no run will resume from it.

        Raises:
            BrokenCheckpointError: something is missing, truncated or altered.
        """
        manifest = manifest_of(path / MANIFEST)
        check_files(path, manifest.files)
        progress = read_json(path / PROGRESS)
        with reading(path, f"{PROGRESS} is not what a run writes", FIX):
            place = from_plain(Place if alone else Progress, progress)
            if isinstance(place, Progress) and place.own:
                control = saved_values(manifest.config)["algorithm.kl.control"]
                check_own(place.stage, place.own, control)
        check_places(path, place.checkpoints.values())
        check_name(path, place, manifest.number)
        notes: list[str] = []
        if isinstance(place, Progress):
            lost = self._check_models(path, manifest, place)
            kept = {n: folder for n, folder in place.checkpoints.items() if n not in lost}
            progress |= {"checkpoints": kept}
            notes = [*lost.values(), *self._check_appended(path, place.appended)]
        return SavedRun(
            path,
            number_of(path) or manifest.number or 0,
            place.stage,
            place.step,
            progress,
            manifest.config,
            manifest.versions,
            manifest.inputs,
            tuple(notes),
        )

    def _check_models(self, path: Path, manifest: Manifest, place: Progress) -> dict[str, str]:
        """Check the files elsewhere in the run folder that a checkpoint relies on.

        Returns:
            One note per unusable model that no remaining stage needs.
        """
        check_places(path, (*manifest.elsewhere, *place.appended))
        listed: dict[str, dict[str, Entry]] = {}  # by folder
        for name, entry in manifest.elsewhere.items():
            listed.setdefault(str(Path(name).parent), {})[name] = entry
        models = {each for each in listed if f"{each}/{model_folder.MANIFEST}" in listed[each]}
        if other := sorted(models ^ {*place.checkpoints.values()}):
            raise broken(path, f"{MANIFEST} and {PROGRESS} do not name the same models: {other[0]}")
        for other in sorted(listed.keys() - models):
            check_all(self._run.path, listed[other])
        lost: dict[str, str] = {}
        needed = self._needs(place.stage, place.finished) if self._needs else {*place.checkpoints}
        for name, folder in sorted(place.checkpoints.items()):
            try:
                check_all(self._run.path, listed[folder])
                model_folder.require(str(self._run.path / folder), name)
            except CheckpointError as error:
                if name in needed:
                    raise
                lost[name] = f"no stage that is left reads the model {name}: {error.what}"
        return lost

    def _check_appended(self, path: Path, sizes: Mapping[str, int]) -> list[str]:
        """Return notes on lost samples; raise if other records are missing or too short."""
        notes: list[str] = []
        for name, size in sizes.items():
            file = self._run.path / name
            if lexists(file):
                require_file(file, "move it to another place, then resume again")
            found = file.stat().st_size if file.exists() else 0
            if found >= size:
                continue
            if file.parent != self._run.samples:
                raise broken(path, f"{name} is shorter than the {size} bytes it had")
            notes.append(f"{name} has {found} of the {size} bytes it had: samples are lost")
        return notes

    def newest(self) -> tuple[SavedRun | None, list[str]]:
        """The newest complete checkpoint, and the reasons why newer ones were skipped."""
        skipped: list[str] = []
        for path in reversed(self.whole()):
            try:
                return self.read(path), skipped
            except RehearsalError as error:
                skipped.append(f"skipped {path.name}: {error.what}, in {error.where}")
        return None, skipped

    def under_other_names(self) -> list[Path]:
        """Complete checkpoints that were moved aside, or that a user copied or renamed."""
        found: list[Path] = []
        for path in sorted(self._entries()):
            if not NAME.fullmatch(path.name) and (path / MANIFEST).is_file():
                with suppress(RehearsalError):
                    found.append(self.read(path).path)
        return found

    def continue_from(self, saved: SavedRun) -> SavedRun:
        """Rename newer and unfinished checkpoints; no complete checkpoint is deleted.

        Returns:
            `saved` under a checkpoint's exact name: a checkpoint that was moved aside is renamed, a
            user's copy is copied and stays.
        """
        partial = [p for p in self._entries() if number_of(p) and p.name.endswith(PARTIAL)]
        for path in partial:
            if not lexists(path / MANIFEST):  # incomplete: the manifest is written last
                shutil.rmtree(path, ignore_errors=True)
        newer = [p for p in self.whole() if number_of(p) > saved.number]
        with writing(self.path, "the folder of checkpoints"):
            for path in [*newer, *filter(lexists, partial)]:
                ending = SUPERSEDED
                try:
                    self.read(path)
                except RehearsalError:
                    ending = BROKEN
                bare = path.name.removesuffix(PARTIAL)
                path.rename(_free(path.with_name(bare + ending)))
        return saved if NAME.fullmatch(saved.path.name) else self._named(saved)

    def _named(self, saved: SavedRun) -> SavedRun:
        number = self._next()
        path = self.path / f"{number:06d}-{saved.stage}-{saved.step}"
        partial = path.with_name(path.name + PARTIAL)
        with writing(path, "the checkpoint"):
            if number_of(saved.path):
                saved.path.rename(partial)
            else:
                shutil.copytree(saved.path, partial)
            renumber(partial / MANIFEST, number)
            partial.rename(path)
        return replace(saved, path=path, number=number)


def steps_of(names: Iterable[str]) -> dict[str, dict[int, str]]:
    """The last of these exact names, oldest first, for each step of each stage."""
    found: dict[str, dict[int, str]] = {}
    for each in names:
        name = NAME.fullmatch(each)
        assert name is not None, "only exact names are checkpoints"
        found.setdefault(name["stage"], {})[int(name["step"])] = each
    return found


def superfluous(
    names: Sequence[str], keep_last: int, keep_every: int, kept: Collection[str]
) -> list[str]:
    """Those of these checkpoints, oldest first, that need not be kept; see `SavedRuns.prune`."""
    steps = ((name, int(name.rpartition("-")[2])) for name in names[:-keep_last])
    return [
        name
        for name, step in steps
        if name not in kept and not (keep_every and step and step % keep_every == 0)
    ]


def _has_own_name(path: Path) -> bool:
    """Whether a run saved this checkpoint under this name; False if it cannot be read."""
    try:
        with reading(path, f"{PROGRESS} is not what a run writes", FIX):
            place = from_plain(Place, read_json(path / PROGRESS))
        check_name(path, place, manifest_of(path / MANIFEST).number)
    except RehearsalError:
        return False
    return True


def _free(path: Path) -> Path:
    """`path`, or its first free variant: an existing folder may be a user's copy."""
    variants = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    return next(p for p in itertools.chain((path,), variants) if not p.exists())

"""Checkpoints of a run: one folder a saved step, published whole or not at all, checked on reading.

`state/000007-ppo-12/` holds a file of each trainer rank, progress.json with everything the driver
knows, and manifest.json with size and hash of both. It is written under `.partial`, flushed and
renamed, so a name without an ending is a whole checkpoint; hashes find what broke since.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator import checkpoint
from orchestrator.manifest import unseal
from orchestrator.run_folder import RunFolder, write_json
from workers.disk import writing
from workers.errors import BrokenCheckpointError, RehearsalError
from workers.messages import FileRecord

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
SCHEMA_VERSION = 2
_PARTIAL, _BROKEN, _SUPERSEDED = ".partial", ".broken", ".superseded"
# Only these names are checkpoints; copies that people make beside them ("...-backup") are theirs.
_NAME = re.compile(r"(?P<number>\d{6,})-(?P<stage>[a-z0-9_]+)-(?P<step>\d+)")
_NUMBERED = re.compile(rf"{_NAME.pattern}(\{_PARTIAL}|(\{_BROKEN}|\{_SUPERSEDED})(-\d+)?)?")
_MEND = "an older checkpoint of the run may be whole: resume=FOLDER/state/NUMBER-STAGE-STEP"


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A checkpoint that was read and found whole."""

    path: Path
    number: int  # counts the checkpoints of a run
    stage: str
    step: int  # of the stage; what was done, not what comes next
    progress: dict[str, Any]
    config: dict[str, Any]  # the resolved configuration that it was saved under
    versions: dict[str, str]  # of the packages
    notes: tuple[str, ...] = ()  # what is missing, though nothing relies on it

    @property
    def folder(self) -> RunFolder:
        """The run folder that it belongs to."""
        return RunFolder(self.path.parent.parent)

    def __str__(self) -> str:
        return f"stage {self.stage}, step {self.step} ({self.path.name})"


class SavedRuns:
    """The checkpoints in one run folder."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self.path = run.state

    def whole(self) -> list[Path]:
        """Published checkpoints, oldest first."""
        return sorted(
            (p for p in self._entries() if _NAME.fullmatch(p.name) and p.is_dir()), key=_number
        )

    def _entries(self) -> list[Path]:
        return list(self.path.iterdir()) if self.path.is_dir() else []

    def begin(self, stage: str, step: int) -> Path:
        """A new empty folder for trainers to write into.

        Raises:
            CheckpointError: it cannot be made.
        """
        number = 1 + max(map(_number, self._entries()), default=0)
        partial = self.path / f"{number:06d}-{stage}-{step}{_PARTIAL}"
        with writing(partial, "the checkpoint"):
            partial.mkdir()  # not its parents: a run folder that has vanished is not made anew
        return partial

    def publish(
        self,
        partial: Path,
        records: Iterable[FileRecord],
        progress: Mapping[str, Any],
        facts: Mapping[str, Any],
        products: Iterable[Path],
    ) -> Path:
        """Make a folder from `begin` a checkpoint.

        Args:
            partial: the folder; all files in `records` are in it and on disk.
            records: what the trainers wrote.
            progress: what the driver knows, JSON-ready.
            facts: configuration and versions, JSON-ready.
            products: files elsewhere in the run folder that the checkpoint relies on.

        Raises:
            CheckpointError: the disk is full or read-only; checkpoints before this one are intact.
        """
        with writing(partial, "the checkpoint"):
            write_json(partial / PROGRESS, dict(progress))
            files = {r.name: {"bytes": r.nbytes, "sha256": r.sha256} for r in records}
            files[PROGRESS] = _entry(partial / PROGRESS)
            elsewhere = {str(p.relative_to(self._run.path)): _entry(p) for p in products}
            manifest = {"schema": SCHEMA_VERSION, **facts, "files": files, "elsewhere": elsewhere}
            write_json(partial / MANIFEST, manifest, sealed=True)
            checkpoint.flush(partial)
            final = partial.with_suffix("")
            partial.rename(final)
            for folder in (self.path, self._run.path, self._run.path.parent):
                checkpoint.flush(folder)  # the names in it: after a power cut, too, it is found
        return final

    def discard(self, partial: Path) -> None:
        """Give up a folder from `begin`; frees its space."""
        shutil.rmtree(partial, ignore_errors=True)

    def steps(self) -> dict[str, dict[int, Path]]:
        """The newest published checkpoint of each step of each stage."""
        found: dict[str, dict[int, Path]] = {}
        for path in self.whole():
            name = _NAME.fullmatch(path.name)
            assert name is not None, "whole() takes exact names"
            found.setdefault(name["stage"], {})[int(name["step"])] = path
        return found

    def prune(self, keep_last: int, keep_every: int, kept: Collection[Path] = ()) -> None:
        """Delete all but the newest `keep_last`, those whose step `keep_every` divides, and `kept`.

        Call it right after `publish`: what was just written is among the newest.
        """
        for path in self.whole()[:-keep_last]:
            step = int(path.name.rpartition("-")[2])
            if path not in kept and not (keep_every and step and step % keep_every == 0):
                shutil.rmtree(path, ignore_errors=True)

    def read(self, path: Path, *, alone: bool = False) -> SavedRun:
        """Read a checkpoint after checking size and hash of every file it relies on.

        Args:
            path: Its folder.
            alone: Check what is in that folder; nobody is going to go on from it.

        Raises:
            BrokenCheckpointError: something is missing, truncated or altered.
        """
        manifest = _manifest(path / MANIFEST)
        for name, entry in manifest["files"].items():
            _check(path / name, entry)
        for name, entry in {} if alone else manifest["elsewhere"].items():
            _check(self._run.path / name, entry)
            if Path(name).name == checkpoint.MANIFEST:
                checkpoint.require(str((self._run.path / name).parent), "finished")
        progress = _json(path / PROGRESS)
        notes = () if alone else self._check_appended(path, progress["appended"])
        return SavedRun(
            path,
            _number(path),
            progress["stage"],
            progress["step"],
            progress,
            manifest["config"],
            manifest["versions"],
            notes,
        )

    def _check_appended(self, path: Path, sizes: Mapping[str, int]) -> tuple[str, ...]:
        """Notes on samples that are lost; other records have to be there."""
        notes: list[str] = []
        for name, size in sizes.items():
            file = self._run.path / name
            found = file.stat().st_size if file.exists() else 0
            if found >= size:
                continue
            if file.parent != self._run.samples:
                raise _broken(path, f"{name} is shorter than the {size} bytes it had")
            notes.append(f"{name} has {found} of the {size} bytes it had: samples are lost")
        return tuple(notes)

    def newest(self) -> tuple[SavedRun | None, list[str]]:
        """The newest whole checkpoint, and why newer ones were not taken."""
        skipped: list[str] = []
        for path in reversed(self.whole()):
            try:
                return self.read(path), skipped
            except RehearsalError as error:
                skipped.append(f"skipped {path.name}: {error.what}, in {error.where}")
        return None, skipped

    def under_other_names(self) -> list[Path]:
        """Whole checkpoints that were moved aside, or copied or renamed by somebody."""
        found: list[Path] = []
        for path in sorted(self._entries()):
            if not _NAME.fullmatch(path.name) and (path / MANIFEST).is_file():
                with suppress(RehearsalError):
                    found.append(self.read(path).path)
        return found

    def continue_from(self, saved: SavedRun) -> SavedRun:
        """Take what is newer than `saved`, or unfinished, out of the way; delete nothing whole.

        Returns:
            The checkpoint under the exact name that makes it one: a copy stays where it is, and
            what was moved aside is moved back.
        """
        for path in self.path.glob(f"*{_PARTIAL}"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.whole():
            if _number(path) > saved.number:
                ending = _SUPERSEDED
                try:
                    self.read(path)
                except RehearsalError:
                    ending = _BROKEN
                path.rename(_free(path.with_name(path.name + ending)))
        return saved if _NAME.fullmatch(saved.path.name) else self._named(saved)

    def _named(self, saved: SavedRun) -> SavedRun:
        number = 1 + max(map(_number, self._entries()), default=0)
        path = self.path / f"{number:06d}-{saved.stage}-{saved.step}"
        with writing(path, "the checkpoint"):
            if _number(saved.path):
                saved.path.rename(path)
            else:
                partial = path.with_name(path.name + _PARTIAL)
                shutil.copytree(saved.path, partial)
                partial.rename(path)
        return replace(saved, path=path, number=number)


def _free(path: Path) -> Path:
    """`path`, or its first free variant: what lies there may be somebody's copy."""
    variants = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    return next(p for p in itertools.chain((path,), variants) if not p.exists())


def _number(path: Path) -> int:
    """Its number; 0 for what is no checkpoint, not even one that was moved aside."""
    name = _NUMBERED.fullmatch(path.name)
    return int(name["number"]) if name else 0


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _check(path: Path, entry: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise _broken(path.parent, f"{path.name} is missing")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise _broken(path, f"{path.name} has {size} bytes instead of {entry['bytes']}")
    if _entry(path) != entry:
        raise _broken(path, f"{path.name} was altered after it was saved")


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = unseal(path)
    except (OSError, ValueError) as error:
        raise _broken(path, f"{path.name} cannot be trusted: {error}") from error
    if manifest.get("schema") != SCHEMA_VERSION:
        raise BrokenCheckpointError(
            f"it was saved by another version of this program (schema {manifest.get('schema')!r}, "
            f"this one reads {SCHEMA_VERSION})",
            where=str(path),
            mend="go on with the version that saved it, or start the run again",
        )
    return manifest


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(path, f"{path.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise _broken(path, f"{path.name} is no JSON object")
    return value


def _broken(path: Path, why: str) -> BrokenCheckpointError:
    return BrokenCheckpointError(why, where=str(path), mend=_MEND)

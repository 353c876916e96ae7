"""Copy one checkpoint to a mirror, with what a resume needs of the run folder.

A copy is listed (begun.json), then its files are written, each read back and compared with the
checkpoint's manifest, then it is marked as complete (complete.json). Models are shared by copies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.checkpoints import model_folder
from orchestrator.checkpoints.contents import MANIFEST, PROGRESS, Entry, manifest_of
from orchestrator.mirror.records import (
    COPIES,
    MODELS,
    RESULTS,
    Copy,
    Stored,
    begun,
    complete,
    encode,
)
from orchestrator.mirror.restoring import read_copy
from orchestrator.mirror.store import Store
from orchestrator.run_files.folder import RunFolder
from workers.errors import BrokenCheckpointError, MirrorError
from workers.model_folders.files import read_json
from workers.process.library_errors import reading
from workers.process.regular_files import open_regular, sha256_of

_FIX = "the run goes on; its next checkpoint is copied"


def plan_copy(folder: RunFolder, path: Path, run: str) -> Copy:
    """List a checkpoint's files, the models it relies on, and the records of the run.

    Sizes and hashes are those of the manifests; only files without one are read here.

    Raises:
        BrokenCheckpointError: something is missing or damaged, or the checkpoint is gone.
    """
    with reading(path, "the checkpoint cannot be copied", _FIX):
        return Copy(run, path.name, dict(_listed(folder, path)))


def _listed(folder: RunFolder, path: Path) -> Iterator[tuple[str, Stored]]:
    home = f"{COPIES}/{path.name}"
    manifest = manifest_of(path / MANIFEST)
    inside = str(path.relative_to(folder.path))
    for name, entry in manifest.files.items():
        yield f"{inside}/{name}", _stored(entry, f"{home}/{inside}/{name}")
    yield _whole(folder, f"{inside}/{MANIFEST}", home)
    for name, entry in manifest.elsewhere.items():
        if Path(name).name == model_folder.MANIFEST:
            yield from _model(folder, Path(name).parent, entry, home)
        else:
            yield name, _stored(entry, f"{home}/{name}")
    appended: dict[str, int] = read_json(path / PROGRESS)["appended"]
    for name, size in appended.items():
        if size:
            yield name, Stored(size, _prefix(folder.path / name, size), f"{home}/{name}")
    for name in _records(folder):
        if name not in appended:
            yield _whole(folder, name, home)


def _model(folder: RunFolder, model: Path, entry: Entry, home: str) -> Iterator[tuple[str, Stored]]:
    shared = f"{MODELS}/{model.name}-{entry.sha256[:16]}"  # a manifest holds the hash of each file
    yield f"{model}/{model_folder.MANIFEST}", _stored(entry, f"{shared}/{model_folder.MANIFEST}")
    for name, each in model_folder.listed(folder.path / model).items():
        if name == model_folder.CARD:  # may have been edited
            yield _whole(folder, f"{model}/{name}", home)
        else:
            yield f"{model}/{name}", Stored(each["bytes"], each["sha256"], f"{shared}/{name}")


def _stored(entry: Entry, name: str) -> Stored:
    return Stored(entry.bytes, entry.sha256, name)


def _whole(folder: RunFolder, name: str, home: str) -> tuple[str, Stored]:
    file = folder.path / name
    size = file.stat().st_size
    return name, Stored(size, _prefix(file, size), f"{home}/{name}")


def _prefix(file: Path, size: int) -> str:
    digest, left = hashlib.sha256(), size
    with open_regular(file) as opened:
        while left and (chunk := opened.read(min(left, 1 << 20))):
            left -= len(chunk)
            digest.update(chunk)
    if left:
        raise ValueError(f"{file.name} is shorter than the {size:,} bytes it had")
    return digest.hexdigest()


def _records(folder: RunFolder) -> list[str]:
    """Files of the run folder that no manifest lists, and that a resume goes on with."""
    found = [folder.config, folder.losses]
    found += sorted(folder.samples.iterdir()) if folder.samples.is_dir() else []
    return [str(file.relative_to(folder.path)) for file in found if file.is_file()]


def _of_checkpoint(copy: Copy) -> dict[str, Stored]:
    """The files of a copy that do not change after the checkpoint was saved."""
    later = ("config.yaml", "losses.jsonl", "samples/")
    return {path: each for path, each in copy.files.items() if not path.startswith(later)}


class Copier:
    """Writes copies to a mirror; remembers which objects were compared."""

    def __init__(self, store: Store, folder: RunFolder, check: Callable[[], object]) -> None:
        """Store the arguments.

        Args:
            store: The mirror.
            folder: The run folder.
            check: Raises if this process must not write the mirror.
        """
        self._store = store
        self._folder = folder
        self._check = check
        self._compared: dict[str, str] = {}  # object -> SHA-256

    def copy(self, copy: Copy) -> bool:
        """Write a copy, and its marker last; returns False if the mirror already holds it.

        Raises:
            BrokenCheckpointError: the checkpoint is damaged, gone, or was moved aside meanwhile.
            MirrorError: the mirror cannot be written, or another process writes it.
        """
        self._check()
        store, record = self._store, encode(copy)
        if self._is_there(copy):
            return False
        store.delete([complete(copy.name)])  # of an earlier process: its objects are replaced
        store.write(begun(copy.name), record)
        for path, stored in copy.files.items():
            self.bring(self._folder.path / path, stored)
        manifest = f"{self._folder.state.name}/{copy.name}/{MANIFEST}"
        with reading(manifest, "the checkpoint was moved aside while it was copied", _FIX):
            if sha256_of(self._folder.path / manifest) != copy.files[manifest].sha256:
                raise ValueError("it is another one now")
        self._check()
        store.write(complete(copy.name), record)
        return True

    def _is_there(self, copy: Copy) -> bool:
        """Whether the mirror has this checkpoint with all objects of their size."""
        try:
            there = read_copy(self._store, copy.run, copy.name, complete(copy.name))
        except BrokenCheckpointError:
            return False
        sizes = ((each.object, each.bytes) for each in there.files.values())
        same = _of_checkpoint(there) == _of_checkpoint(copy)
        return same and all(self._store.size(name) == size for name, size in sizes)

    def bring(self, source: Path, stored: Stored) -> None:
        """Write one file unless the mirror has it, and compare what arrived.

        Raises:
            BrokenCheckpointError: the local file differs from what its manifest lists.
            MirrorError: the mirror cannot be written.
        """
        store, name = self._store, stored.object
        if store.size(name) == stored.bytes:
            if self._compared.get(name) == stored.sha256:
                return
            if store.digest(name, stored.bytes) == stored.sha256:
                self._compared[name] = stored.sha256
                return
        if store.send(name, source, stored.bytes) != stored.sha256:
            raise BrokenCheckpointError(
                f"{source.name} was altered after it was saved", where=str(source), fix=_FIX
            )
        if store.digest(name, stored.bytes) != stored.sha256:
            raise MirrorError(
                "an object of the mirror has other bytes than were written",
                where=store.place(name),
                fix="check the storage; another process may write there, too",
            )
        self._compared[name] = stored.sha256

    def results(self) -> None:
        """Write summary, report and records of the run to `results/`; an earlier state is replaced.

        Raises:
            BrokenCheckpointError: a file cannot be read.
            MirrorError: the mirror cannot be written.
        """
        self._check()
        folder = self._folder
        files = [folder.summary, folder.report, folder.metrics, folder.error_log, folder.waiting]
        files += sorted(folder.plots.iterdir()) if folder.plots.is_dir() else []
        names = [str(file.relative_to(folder.path)) for file in files if file.is_file()]
        for name in sorted({*names, *_records(folder)}):
            with reading(folder.path / name, f"{name} cannot be copied", _FIX):
                found: Any = _whole(folder, name, RESULTS)
            self.bring(folder.path / name, found[1])

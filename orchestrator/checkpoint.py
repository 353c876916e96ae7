"""Checkpoint folders: written whole or not at all, and checked before anything loads them.

A stage saves into `NAME.partial`; `publish` hashes every file into rehearsal.json, flushes all of
it to disk and renames. A folder without the `.partial` ending is therefore complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator import cards
from workers.disk import open_to_readers, writing
from workers.errors import BrokenCheckpointError, MissingCheckpointError

MANIFEST = "rehearsal.json"
SCHEMA_VERSION = 1

Save = Callable[[str], object]  # writes a Hugging Face folder at the path it is given


def publish(final: Path, save: Save, facts: dict[str, Any]) -> Path:
    """Let `save` write a Hugging Face folder and make it visible under `final` in one rename.

    Args:
        final: where the folder shall appear; one that is there already is replaced.
        save: writes the folder at the path it is given.
        facts: JSON-ready description (stage, seed, ...) kept in the manifest.

    Raises:
        BrokenCheckpointError: what was saved is not a loadable folder.
        CheckpointError: the disk is full or read-only; a folder that was there stays.
    """
    with writing(final, "the model"):
        _publish(final, save, facts)
    return final


def _publish(final: Path, save: Save, facts: dict[str, Any]) -> None:
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save(str(partial))
    _check_folder(partial)
    open_to_readers(partial)
    files = {
        str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(partial.rglob("*"))
        if path.is_file()
    }
    manifest = {"schema": SCHEMA_VERSION, "facts": facts, "files": files}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for path in [*partial.rglob("*"), partial]:
        flush(path)
    _replace(partial, final)


def require(path: str, what: str) -> Path:
    """Check that `path` is a Hugging Face folder that can be loaded, and return it.

    A folder with a manifest of ours is checked against it, hash by hash.

    Raises:
        MissingCheckpointError: there is no such folder.
        BrokenCheckpointError: files are missing, truncated or altered.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise MissingCheckpointError(
            f"the {what} checkpoint is not there",
            where=str(folder),
            mend=f"give an existing Hugging Face folder, or add the stage that makes it; "
            f"model.checkpoints.{what}=PATH",
        )
    _check_folder(folder)
    if (folder / MANIFEST).is_file():
        _check_manifest(folder)
    return folder


def _check_folder(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise _broken(folder, "config.json is missing")
    try:
        json.loads(config.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise _broken(folder, f"config.json does not parse: {error}") from error
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise _broken(folder, "no *.safetensors file")
    for path in weights:
        _check_safetensors(path)


def _check_safetensors(path: Path) -> None:
    """The header must parse, and the file must be as long as the header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise _broken(path, f"truncated: {size} bytes")
        try:
            header = json.loads(file.read(length))
        except (ValueError, UnicodeDecodeError) as error:
            raise _broken(path, f"the header does not parse: {error}") from error
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    wanted = 8 + length + max(ends, default=0)
    if size != wanted:
        raise _broken(path, f"{size} bytes where the header promises {wanted}")


def _check_manifest(folder: Path) -> None:
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (ValueError, KeyError) as error:
        raise _broken(folder, f"{MANIFEST} does not parse: {error}") from error
    for name, entry in files.items():
        if name == cards.NAME:  # for people, who may write into it
            continue
        path = folder / name
        if not path.is_file():
            raise _broken(folder, f"{name} is missing")
        if path.stat().st_size != entry["bytes"] or _digest(path) != entry["sha256"]:
            raise _broken(path, f"differs from what {MANIFEST} recorded when it was saved")


def _broken(path: Path, why: str) -> BrokenCheckpointError:
    return BrokenCheckpointError(
        why, where=str(path), mend="copy or make the checkpoint again; this one is not whole"
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have the kernel write a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(partial: Path, final: Path) -> None:
    """Rename over `final`; an old folder is moved aside first and removed last."""
    old = final.with_name(final.name + ".replaced")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)

"""Model folders: written atomically, and checked before anything loads them.

A stage saves into `NAME.partial`; `publish` writes the hashes of all files to rehearsal.json,
flushes everything to disk and renames the folder. A folder without `.partial` is thus complete.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from os.path import lexists
from pathlib import Path
from typing import Any

from orchestrator.run_files.sealed_json import seal, unseal
from workers.errors import BrokenCheckpointError, MissingCheckpointError
from workers.model_folders.files import (
    broken,
    read_headers,
    read_json,
    require_file,
    require_plain_files,
    weight_files,
)
from workers.process.disk import open_to_readers, side_by_side, writing
from workers.process.library_errors import reading
from workers.process.regular_files import sha256_of

CARD = "README.md"  # may be rewritten later, so its hash is not checked
MANIFEST = "rehearsal.json"
ADAPTER = "adapter_config.json"  # of peft
SCHEMA_VERSION = 2  # since 2 the manifest has a checksum of its own content
SCORE_DEVIATION = "score_deviation"  # reward model fact: standard deviation of its scores

_FIX = "copy or make the checkpoint again; this one is not whole"

Save = Callable[[str], object]  # writes a Hugging Face folder to the given path
Meanwhile = Callable[[], object]  # called repeatedly while weights are read or flushed


def publish(
    final: Path, save: Save, facts: dict[str, Any], meanwhile: Meanwhile | None = None
) -> Path:
    """Let `save` write a Hugging Face folder, then rename it to `final`.

    Args:
        final: path of the finished folder; an existing folder is replaced.
        save: writes the folder to the given path.
        facts: JSON-ready description (stage, seed, ...) stored in the manifest.
        meanwhile: see `Meanwhile`.

    Raises:
        BrokenCheckpointError: the saved folder cannot be loaded.
        CheckpointError: the disk is full or read-only; an existing folder stays.
    """
    with writing(final, "the model"):
        _publish(final, save, facts, meanwhile)
    return final


def _publish(final: Path, save: Save, facts: dict[str, Any], meanwhile: Meanwhile | None) -> None:
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save(str(partial))
    _check_folder(partial)
    open_to_readers(partial)
    paths = [path for path in sorted(partial.rglob("*")) if path.is_file()]
    digests = side_by_side(sha256_of, paths, meanwhile)
    files = {
        str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }
    manifest = {"schema": SCHEMA_VERSION, "facts": facts, "files": files}
    (partial / MANIFEST).write_text(seal(manifest), encoding="utf-8")
    side_by_side(flush, [*partial.rglob("*"), partial], meanwhile)
    _replace(partial, final)


def require(
    path: str, what: str, key: str | None = None, meanwhile: Meanwhile | None = None
) -> Path:
    """Check that `path` is a readable Hugging Face folder, and return it.

    If the folder has a rehearsal.json, the sizes and hashes in it are checked.

    Args:
        path: The folder.
        what: The name of the checkpoint, for messages.
        key: Configuration key that gives the path; None: `model.checkpoints.WHAT`; "": no key does.
        meanwhile: see `Meanwhile`.

    Raises:
        MissingCheckpointError: there is no such folder.
        BrokenCheckpointError: files are missing, truncated, altered or not regular files.
    """
    folder = require_folder(path, what, key)
    _check_folder(folder)
    if lexists(folder / MANIFEST):
        _check_manifest(folder, meanwhile)
    return folder


def require_folder(path: str, what: str, key: str | None = None) -> Path:
    """Check that there is a folder, whatever it holds; arguments and result as of `require`.

    Raises:
        MissingCheckpointError: there is no such folder.
        BrokenCheckpointError: it cannot be looked at.
    """
    made = key is None  # by a stage, unless it is given
    key = f"model.checkpoints.{what}" if key is None else key
    folder, by_key = Path(path), f"; {key}=PATH" if key else ""
    with reading(folder, f"the {what} checkpoint cannot be looked at", f"check {key or folder}"):
        is_folder, is_file = folder.is_dir(), folder.is_file()
    if is_file:
        raise MissingCheckpointError(
            f"the {what} checkpoint is a file; a folder is wanted",
            where=str(folder),
            fix=f"give the folder that holds config.json, weights and tokenizer{by_key}",
        )
    if not is_folder or not path:
        raise MissingCheckpointError(
            f"the {what} checkpoint is not there",
            where=str(folder) if path else key,
            fix="give an existing Hugging Face folder"
            + (", or add the stage that makes it" if made else "")
            + by_key,
        )
    return folder


def facts(folder: Path) -> dict[str, Any]:
    """The facts in a folder's manifest; {} for a folder without a manifest.

    Raises:
        BrokenCheckpointError: the manifest does not parse.
    """
    if not lexists(folder / MANIFEST):
        return {}
    found = _manifest(folder).get("facts")
    if not isinstance(found, dict):
        raise _broken(folder, f"{MANIFEST} holds no facts")
    return found


def _check_folder(folder: Path) -> None:
    with reading(folder, "the folder cannot be read", "check its permissions"):
        adapter = not (folder / "config.json").exists() and (folder / ADAPTER).exists()
    if adapter:
        weight_files(folder)  # raises the error for an adapter
    read_json(folder / "config.json")
    read_headers(folder)
    require_plain_files(folder)


def _manifest(folder: Path) -> dict[str, Any]:
    return unseal(folder / MANIFEST, _FIX, since=SCHEMA_VERSION)


def listed(folder: Path) -> dict[str, dict[str, Any]]:
    """Size ("bytes") and hash ("sha256") of each file in a folder's manifest, as they are there.

    Raises:
        BrokenCheckpointError: the manifest does not parse, or lists no files.
    """
    files = _manifest(folder).get("files")
    if not isinstance(files, dict) or not files:
        raise _broken(folder, f"{MANIFEST} does not parse: it lists no files")
    return files


def _check_manifest(folder: Path, meanwhile: Meanwhile | None) -> None:
    # users may edit the model card
    checked = [(name, entry) for name, entry in listed(folder).items() if name != CARD]
    side_by_side(lambda each: _check_entry(folder, *each), checked, meanwhile)


def _check_entry(folder: Path, name: str, entry: object) -> None:
    path, kept = Path(name), entry if isinstance(entry, dict) else {}
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise _broken(folder, f"{MANIFEST} names {name!r}, which is not in the folder")
    path = folder / path
    require_file(path)
    with reading(path, f"{name} cannot be read", "check its permissions"):
        same = path.stat().st_size == kept.get("bytes") and sha256_of(path) == kept.get("sha256")
    if not same:
        raise _broken(path, f"differs from what {MANIFEST} recorded when it was saved")


def _broken(path: Path, why: str) -> BrokenCheckpointError:
    return broken(path, why, _FIX)


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(partial: Path, final: Path) -> None:
    """Rename to `final`; an existing folder is moved aside first and removed last."""
    old = final.with_name(final.name + ".replaced")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)

"""Contents of a run's checkpoint: names, manifest and files, and their checks before use.

Every file that the manifest lists must be complete, in its place, and part of that checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.checkpoints.given_inputs import Files
from orchestrator.checkpoints.progress import Place, Progress
from orchestrator.run_files.dataclass_json import from_plain
from orchestrator.run_files.folder import write_json
from orchestrator.run_files.sealed_json import unseal
from workers.errors import BrokenCheckpointError
from workers.model_folders.files import require_file
from workers.process.disk import side_by_side
from workers.process.library_errors import reading
from workers.process.regular_files import sha256_of

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
SCHEMA_VERSION = 2
PARTIAL, BROKEN, SUPERSEDED = ".partial", ".broken", ".superseded"
# Only folders with these names are checkpoints; other names ("...-backup") are copies by the user.
NAME = re.compile(r"(?P<number>\d{6,})-(?P<stage>[a-z0-9_]+)-(?P<step>\d+)")
NUMBERED = re.compile(rf"{NAME.pattern}(\{PARTIAL}|(\{BROKEN}|\{SUPERSEDED})(-\d+)?)?")
# Files that trainers, queue and pool of sequences read; the manifest must list each of them.
_READ = re.compile(r"[a-z_]+\.\d+\.safetensors|ahead-\d+-\d+\.safetensors|pool\.safetensors")
FIX = "an older checkpoint of the run may be whole: resume=FOLDER/state/NUMBER-STAGE-STEP"


@dataclass(frozen=True, slots=True)
class Entry:
    """Size and hash of one file when it was saved."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of manifest.json."""

    config: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, Entry]  # in the checkpoint folder
    elsewhere: dict[str, Entry]  # in the run folder
    number: int | None = None  # of the checkpoint; earlier versions did not write it
    inputs: dict[str, Files] = field(default_factory=dict)  # input files of the run, by config key


def number_of(path: Path) -> int:
    """The number of a checkpoint, also of one that was moved aside; 0 for any other path."""
    name = NUMBERED.fullmatch(path.name)
    return int(name["number"]) if name else 0


def entry_of(path: Path) -> dict[str, Any]:
    """The manifest's entry for a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def check(path: Path, entry: Entry) -> None:
    """Refuse a file that has changed since it was saved.

    Raises:
        BrokenCheckpointError: it is missing, not a regular file, or has other bytes.
    """
    require_file(path, FIX)
    size = path.stat().st_size
    if size != entry.bytes:
        raise broken(path, f"{path.name} has {size} bytes instead of {entry.bytes}")
    with reading(path, f"{path.name} cannot be read", FIX):
        same = entry_of(path)["sha256"] == entry.sha256
    if not same:
        raise broken(path, f"{path.name} was altered after it was saved")


def check_all(folder: Path, files: Mapping[str, Entry]) -> None:
    """Check files in parallel.

    Raises:
        BrokenCheckpointError: names the first file, in order, that has changed.
    """
    side_by_side(lambda each: check(folder / each[0], each[1]), files.items())


def check_files(path: Path, files: Mapping[str, Entry]) -> None:
    """Refuse a folder with changed files, or with unlisted files that would be read.

    Raises:
        BrokenCheckpointError: names the file.
    """
    if PROGRESS not in files:
        raise broken(path, f"{MANIFEST} does not list {PROGRESS}")
    check_places(path, files)
    check_all(path, files)
    more = sorted(p.name for p in path.iterdir() if _READ.fullmatch(p.name) and p.name not in files)
    if more:
        raise BrokenCheckpointError(
            f"{more[0]} is not of this checkpoint: {MANIFEST} does not list it",
            where=str(path),
            fix="move it out of the folder",
        )


def check_places(path: Path, places: Iterable[str]) -> None:
    """Refuse relative paths that lead out of their folder.

    Raises:
        BrokenCheckpointError: names the path.
    """
    for place in places:
        if Path(place).is_absolute() or ".." in Path(place).parts or "\0" in place or not place:
            raise broken(path, f"it names {place!r}, which is not in the folder")


def check_name(path: Path, place: Place | Progress, number: int | None) -> None:
    """Refuse a folder that has the exact name of another checkpoint; other names are allowed.

    Raises:
        BrokenCheckpointError: names the right name.
    """
    name = NAME.fullmatch(path.name)
    if name is None:
        return
    told = (name["stage"], int(name["step"]))
    if told != (place.stage, place.step) or number not in (None, int(name["number"])):
        right = f"{number or int(name['number']):06d}-{place.stage}-{place.step}"
        raise BrokenCheckpointError(
            f"it was saved as {right} and renamed, or copied",
            where=str(path),
            fix=f"give it the name {right}; a copy can have any other name",
        )


def manifest_of(path: Path) -> Manifest:
    """Read a manifest.json.

    Raises:
        BrokenCheckpointError: it was altered, has another schema version, or lacks a key.
    """
    plain = unseal(path, FIX)
    if plain.get("schema") != SCHEMA_VERSION:
        raise BrokenCheckpointError(
            f"it was saved by another version of this program (schema {plain.get('schema')!r}, "
            f"this one reads {SCHEMA_VERSION})",
            where=str(path),
            fix="resume with the version that saved it, or start the run again",
        )
    with reading(path, f"{path.name} is not what a run writes", FIX):
        return from_plain(Manifest, plain)


def renumber(path: Path, number: int) -> None:
    """Write another number into a manifest.json, for a checkpoint that gets a new name."""
    plain = unseal(path, FIX) | {"number": number}
    write_json(path, plain, sealed=True)


def broken(path: Path, why: str) -> BrokenCheckpointError:
    """The error for a checkpoint that cannot be used."""
    return BrokenCheckpointError(why, where=str(path), fix=FIX)

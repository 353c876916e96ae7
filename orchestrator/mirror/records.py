"""Records in a mirror, as sealed JSON: whose mirror it is, who writes it, and what a copy holds.

A mirror is shared storage, so nothing in it is trusted: a record is used only after these checks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from orchestrator.checkpoints.contents import NAME
from orchestrator.run_files.dataclass_json import from_plain
from orchestrator.run_files.sealed_json import seal, unsealed
from workers.errors import BrokenCheckpointError
from workers.process.library_errors import reading

T = TypeVar("T")
SCHEMA_VERSION = 1
IDENTITY, WRITER = "identity.json", "writer.json"
COPIES, MODELS, RESULTS = "copies", "models", "results"
BEGUN, COMPLETE = "begun.json", "complete.json"
MOST_RECORD_BYTES = 64 << 20
_MOST_FILES = 100_000
_MOST_FILE_BYTES = 1 << 44  # 16 TiB
_MOST_PATH_BYTES = 1024  # the longest key of S3
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RUN = re.compile(r"[0-9a-f]{32}")
_FIX = "give the URL of a mirror that only runs write; a copy that was altered is of no use"
# What a copy may restore, as paths in the run folder; {name} is the checkpoint.
_RESTORED = (
    r"config\.yaml|metrics\.jsonl|losses\.jsonl|state/rankings\.safetensors"
    r"|state/{name}/.+|samples/.+|checkpoints/.+/.+"
)


@dataclass(frozen=True, slots=True)
class Identity:
    """The run that a mirror belongs to; written once."""

    run: str  # 32 hexadecimal digits, random
    schema: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Writer:
    """The process that writes the mirror; a later process replaces it."""

    process: str  # 32 hexadecimal digits, random


@dataclass(frozen=True, slots=True)
class Stored:
    """One file of the run folder, and the object that holds it."""

    bytes: int
    sha256: str
    object: str  # path in the mirror


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a checkpoint, with what a resume needs of the run folder."""

    run: str
    name: str  # of the checkpoint
    files: dict[str, Stored]  # by path in the run folder
    schema: int = SCHEMA_VERSION

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(each.bytes for each in self.files.values())


def begun(name: str) -> str:
    """The object that lists a copy before its files are written."""
    return f"{COPIES}/{name}/{BEGUN}"


def complete(name: str) -> str:
    """The object that makes a copy complete: written last, deleted first."""
    return f"{COPIES}/{name}/{COMPLETE}"


def encode(record: Identity | Writer | Copy) -> bytes:
    """The bytes of a record."""
    return seal(asdict(record)).encode()


def identity_of(data: bytes, where: str) -> Identity:
    """Parse the identity of a mirror.

    Raises:
        BrokenCheckpointError: it is damaged, or of another version.
    """
    found = _parse(Identity, data, where)
    if not _RUN.fullmatch(found.run):
        raise _broken("its run is no 32 hexadecimal digits", where)
    return found


def writer_of(data: bytes, where: str) -> Writer:
    """Parse the record of the process that writes.

    Raises:
        BrokenCheckpointError: it is damaged.
    """
    return _parse(Writer, data, where)


def copy_of(data: bytes, where: str, run: str, name: str) -> Copy:
    """Parse the record of a copy, and check that it names nothing outside of its places.

    Args:
        data: The object's bytes.
        where: Its place, for messages.
        run: The run that the mirror belongs to.
        name: The checkpoint in whose folder the object was found.

    Raises:
        BrokenCheckpointError: it is damaged, of another run, checkpoint or version, or names a
            file that no copy has.
    """
    found = _parse(Copy, data, where)
    if (found.run, found.name) != (run, name) or not NAME.fullmatch(name):
        raise _broken(f"it is of run {found.run!r}, checkpoint {found.name!r}", where)
    if not 0 < len(found.files) <= _MOST_FILES:
        raise _broken(f"it lists {len(found.files):,} files", where)
    restored = re.compile(_RESTORED.format(name=re.escape(name)))
    for path, each in found.files.items():
        if not (is_inside(path) and restored.fullmatch(path)):
            raise _broken(f"it names the file {path!r}, which is in no copy of {name}", where)
        _check_object(each, name, where)
    return found


def is_inside(path: str) -> bool:
    """Whether a relative path in normal form stays in its folder."""
    parts = path.split("/")
    plain = not any(sign in path for sign in ("\0", "\\", "://"))
    return plain and len(path.encode()) <= _MOST_PATH_BYTES and not {"", ".", ".."} & {*parts}


def objects_of(copies: Iterable[Copy]) -> set[str]:
    """The objects of the files of several copies."""
    return {each.object for copy in copies for each in copy.files.values()}


def _check_object(each: Stored, name: str, where: str) -> None:
    homes = (f"{COPIES}/{name}/", f"{MODELS}/")
    records = (begun(name), complete(name))
    if not (is_inside(each.object) and each.object.startswith(homes)) or each.object in records:
        raise _broken(f"it names the object {each.object!r}, which is not of this copy", where)
    if not 0 <= each.bytes <= _MOST_FILE_BYTES or not _DIGEST.fullmatch(each.sha256):
        raise _broken(f"size or hash of {each.object!r} cannot be", where)


def _parse(kind: type[T], data: bytes, where: str) -> T:
    with reading(where, "a record of the mirror cannot be trusted", _FIX):
        plain: dict[str, Any] = unsealed(data)
        found = from_plain(kind, plain)
        if (version := plain.get("schema", SCHEMA_VERSION)) != SCHEMA_VERSION:
            raise ValueError(f"schema {version}, this version reads {SCHEMA_VERSION}")
    return found


def _broken(why: str, where: str) -> BrokenCheckpointError:
    return BrokenCheckpointError(
        f"a record of the mirror cannot be trusted: {why}", where=where, fix=_FIX
    )

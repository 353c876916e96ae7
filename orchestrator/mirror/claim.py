"""Whose mirror it is: one run per URL, one writing process at a time.

The identity of a run is a random number in the mirror and in `RUN/mirror.json`. Each process that
goes on with a run leaves its own number in the mirror; one that finds another there stops writing.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from os.path import lexists

from orchestrator.checkpoints.contents import NAME, number_of
from orchestrator.mirror.records import (
    COPIES,
    IDENTITY,
    MOST_RECORD_BYTES,
    WRITER,
    Identity,
    Writer,
    complete,
    encode,
    identity_of,
    writer_of,
)
from orchestrator.mirror.store import Store
from orchestrator.run_files.folder import RunFolder, write_json
from workers.errors import BrokenCheckpointError, ConfigError, MirrorError
from workers.model_folders.files import require_file

_FIX = "give this run another run.mirror; to go on with that one: resume=auto in an empty run.dir"


class TakenOverError(MirrorError):
    """Another process goes on with the run and writes the mirror."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The identity with which a run uses a mirror."""

    run: str
    is_new: bool  # the mirror has no identity yet


def find_claim(store: Store, folder: RunFolder, resume: str) -> Claim:
    """Check that a mirror is free or belongs to this run; changes nothing.

    Args:
        store: The mirror.
        folder: The run folder.
        resume: `config.resume`; "" starts a new run, which needs a mirror without a run.

    Raises:
        ConfigError: the mirror belongs to another run.
        BrokenCheckpointError: the identity in the mirror or in the run folder is damaged.
        MirrorError: the mirror cannot be read.
    """
    owner = _owner(store)
    if not resume:
        if owner is not None:
            raise _taken(store, "already holds a run")
        return Claim(uuid.uuid4().hex, is_new=True)
    known = _known(folder)
    if owner is None:
        return Claim(known or uuid.uuid4().hex, is_new=True)
    empty = not folder.state.is_dir() or not any(map(number_of, folder.state.iterdir()))
    if known != owner and not (resume == "auto" and known is None and empty):
        raise _taken(store, "belongs to another run than this folder")
    return Claim(owner, is_new=False)


def take(store: Store, folder: RunFolder, claim: Claim) -> str:
    """Write the identity where it is new, and become the writer; returns the process's number.

    Raises:
        ConfigError: another run took the mirror meanwhile.
        MirrorError: the mirror cannot be written.
        CheckpointError: the run folder cannot be written.
    """
    if claim.is_new:
        if _owner(store) is not None:
            raise _taken(store, "was taken by another run just now")
        store.write(IDENTITY, encode(Identity(claim.run)))
    own(folder, claim)
    process = uuid.uuid4().hex
    store.write(WRITER, encode(Writer(process)))
    return process


def own(folder: RunFolder, claim: Claim) -> None:
    """Write into the run folder which run of a mirror it is.

    Raises:
        CheckpointError: the disk is full or read-only.
    """
    write_json(folder.mirror, asdict(Identity(claim.run)), sealed=True)


def require_writer(store: Store, claim: Claim, process: str) -> None:
    """Check that this process still writes the mirror.

    Raises:
        TakenOverError: another process does.
        MirrorError: the mirror cannot be read, or its records are gone.
    """
    data = store.read(WRITER, MOST_RECORD_BYTES)
    if data is None:
        raise MirrorError(
            "the mirror has lost its records: it was emptied or is another one",
            where=store.place(WRITER),
            fix="give a mirror that only runs write",
        )
    owner = _owner(store)
    if owner != claim.run or writer_of(data, store.place(WRITER)).process != process:
        raise TakenOverError(
            "another process writes this mirror now; this one no longer does",
            where=store.url,
            fix="end one of the two",
        )


def copy_names(store: Store) -> list[str]:
    """Checkpoints with a folder in the mirror, complete or not, oldest first."""
    names = [name for name in store.entries(COPIES) if NAME.fullmatch(name)]
    return sorted(names, key=lambda name: int(name.partition("-")[0]))


def complete_names(store: Store) -> list[str]:
    """Checkpoints whose copy is complete by its marker, oldest first; nothing is checked."""
    return [name for name in copy_names(store) if store.size(complete(name)) is not None]


def _owner(store: Store) -> str | None:
    data = store.read(IDENTITY, MOST_RECORD_BYTES)
    if data is None:
        return None
    try:
        return identity_of(data, store.place(IDENTITY)).run
    except BrokenCheckpointError:
        if complete_names(store):
            raise
        return None  # a process was killed while it wrote this


def _known(folder: RunFolder) -> str | None:
    if not lexists(folder.mirror):
        return None
    require_file(folder.mirror, "delete it, and give this run another run.mirror")
    return identity_of(folder.mirror.read_bytes(), str(folder.mirror)).run


def _taken(store: Store, how: str) -> ConfigError:
    return ConfigError(f"the mirror {how}", where=f"run.mirror={store.url}", fix=_FIX)

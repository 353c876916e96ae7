"""The file of a labeling project: its tables, how it is made and opened, and who may serve it."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.process.program import invocation
from workers.errors import ConfigError, DataError

VERSION = 1
_KIND = 0x52454C42  # application_id of SQLite's header
_BUSY_SECONDS = 10.0
_SHARED = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "lustre", "gpfs", "afs")

_TABLES = """
CREATE TABLE project (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE task (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('rank', 'compare')),
    name TEXT NOT NULL UNIQUE, prompt TEXT NOT NULL, answers TEXT NOT NULL, gold TEXT,
    needed INTEGER NOT NULL, priority REAL NOT NULL, source TEXT NOT NULL
) STRICT;
CREATE TABLE labeler (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token_sha256 TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('labeler', 'reviewer')), active INTEGER NOT NULL
) STRICT;
CREATE TABLE given (
    labeler INTEGER PRIMARY KEY REFERENCES labeler, task INTEGER NOT NULL REFERENCES task,
    at TEXT NOT NULL
) STRICT;
CREATE TABLE judgment (
    task INTEGER NOT NULL REFERENCES task, labeler INTEGER NOT NULL REFERENCES labeler,
    revision INTEGER NOT NULL, verdict TEXT NOT NULL, shown TEXT NOT NULL, seconds REAL NOT NULL,
    at TEXT NOT NULL, PRIMARY KEY (task, labeler, revision)
) STRICT;
CREATE TABLE pass (
    task INTEGER NOT NULL REFERENCES task, labeler INTEGER NOT NULL REFERENCES labeler,
    flagged INTEGER NOT NULL, comment TEXT NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (task, labeler)
) STRICT;
CREATE TABLE adjudication (
    id INTEGER PRIMARY KEY, task INTEGER NOT NULL REFERENCES task,
    reviewer INTEGER NOT NULL REFERENCES labeler, verdict TEXT NOT NULL, at TEXT NOT NULL
) STRICT;
CREATE INDEX judgments_of_labeler ON judgment (labeler, task, revision);
"""


@contextmanager
def created(path: Path) -> Iterator[sqlite3.Connection]:
    """A new project, in one transaction; after a failure there is no file.

    Raises:
        ConfigError: there is a file already, or it cannot be made here.
    """
    if path.exists():
        raise ConfigError(
            "there is a file already", where=str(path), fix="choose another name, or delete it"
        )
    if not path.parent.is_dir():
        raise ConfigError("there is no such folder", where=str(path.parent), fix="make it first")
    _require_local(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        connection = sqlite3.connect(temporary, isolation_level=None)
        try:
            connection.execute(f"PRAGMA application_id = {_KIND}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.executescript(f"BEGIN; {_TABLES}")
            yield connection
            connection.execute("COMMIT")
        finally:
            connection.close()
        temporary.replace(path)
    except sqlite3.OperationalError as error:
        raise _unusable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def connect(path: Path) -> sqlite3.Connection:
    """Open a project; transactions are written BEGIN and COMMIT.

    A committed judgment is on the disk: in WAL mode SQLite waits for the disk at each commit only
    with `synchronous = FULL`.

    Raises:
        ConfigError: there is no such file, or it is of a newer version, or on a network disk.
        DataError: it is no labeling project, or damaged.
    """
    if not path.is_file():
        raise ConfigError(
            "there is no such labeling project",
            where=str(path),
            fix=f"make one: {invocation('label', 'orchestrator.label')} make FILE.db TASKS.jsonl",
        )
    _require_local(path)
    try:
        connection = sqlite3.connect(
            path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        kind = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if kind == _KIND and version == VERSION:
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                connection.execute(f"PRAGMA {pragma}")
            return connection
    except sqlite3.DatabaseError as error:
        raise _unusable(path, error) from error
    connection.close()
    if kind != _KIND:
        raise DataError(
            "this is no labeling project", where=str(path), fix="give a file that `make` made"
        )
    raise ConfigError(
        f"the project has version {version} of the tables, this program knows {VERSION}",
        where=str(path),
        fix="use the version of Rehearsal that made it",
    )


@contextmanager
def serving(path: Path) -> Iterator[None]:
    """Let no second server use the project: each keeps its own list of who works on what.

    Raises:
        ConfigError: another server has it.
    """
    # another file: closing any descriptor of the database would drop SQLite's own locks
    lock = path.with_name(f"{path.name}.lock")
    try:
        file = lock.open("w")
    except OSError as error:
        raise ConfigError(
            f"the lock cannot be made: {error.strerror}",
            where=str(lock),
            fix="let this user write in that folder",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                "another server has this project open",
                where=str(path),
                fix="use that one, or end it first",
            ) from error
        yield


def _require_local(path: Path) -> None:
    """Refuse disks of other machines, where processes do not see the same shared memory."""
    kind = _file_system(path.absolute().parent)
    if kind in _SHARED:
        raise ConfigError(
            f"a project cannot be on a network disk ({kind}): SQLite's log needs shared memory",
            where=str(path),
            fix="put it on a disk of this machine",
        )


def _file_system(folder: Path) -> str:
    """The type of the file system that holds a folder, as the kernel lists it; "" = unknown."""
    place, found = folder.resolve(), ""
    longest = -1
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        mounted = Path(point.replace("\\040", " "))
        if place.is_relative_to(mounted) and len(point) >= longest:
            longest, found = len(point), kind
    return found


def _unusable(path: Path, error: sqlite3.Error) -> DataError:
    return DataError(
        f"the project cannot be used: {error}",
        where=str(path),
        fix="give a file that `make` made, in a folder where this user may write, on a disk with "
        "free space",
    )

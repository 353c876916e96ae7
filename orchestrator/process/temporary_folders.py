"""Temporary folders that are deleted even if their owner was killed.

A folder is in use while its owner holds a lock on it. The kernel releases the lock when the process
ends, so the next run can tell an abandoned folder from one in use. All folders are inside one
private folder per user. Other users can create files beside that folder: those are neither used nor
deleted.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from workers.errors import UnsupportedPlatformError
from workers.process.disk import require_space, temporary_base, writing

_SUFFIX = ".tmp"
_NAME = re.compile(rf"[a-z]+-\w{{8}}{re.escape(_SUFFIX)}")  # only scratch folders are called so
_LONGEST = 107  # characters of the path of a Unix socket
_SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # the longest of Ray's


def home_name() -> str:
    """Name of the folder that holds this user's scratch folders."""
    return f"rehearsal-{os.getuid()}"


def home() -> Path:
    """This user's private folder under the system's temporary directory.

    Raises:
        UnsupportedPlatformError: it cannot be made, or is not private.
    """
    base = temporary_base() / home_name()
    fits = len(f"{base}/ray-abcdefgh{_SUFFIX}{_SOCKET}") <= _LONGEST
    return private_folder(base if fits else Path("/tmp") / home_name())


def private_folder(path: Path) -> Path:
    """Make a folder that only this user can enter, or check that it is one.

    Raises:
        UnsupportedPlatformError: a link, another user's folder, one that others may write to, or
            one that others could replace; or it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found, around = path.lstat(), path.parent.stat()
    except OSError as error:
        raise _unsafe(path, f"cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise _unsafe(path, "is a link or a file, not a folder")
    if found.st_uid != os.getuid():
        raise _unsafe(path, f"belongs to user {found.st_uid}")
    if found.st_mode & 0o022:
        raise _unsafe(path, "can be written by other users")
    open_to_others = around.st_mode & 0o022 and not around.st_mode & stat.S_ISVTX
    if open_to_others or around.st_uid not in (0, os.getuid()):
        raise _unsafe(path, "can be replaced by other users")
    return path


def _unsafe(path: Path, why: str) -> UnsupportedPlatformError:
    return UnsupportedPlatformError(
        f"the folder for temporary files {why}",
        where=str(path),
        fix="move it away, or set TMPDIR to a private folder with a short path",
    )


class Scratch:
    """A private folder under the system's temporary directory, removed by `close`.

    Raises:
        UnsupportedPlatformError: the place for it is not private.
        CheckpointError: its disk is full or read-only.
    """

    def __init__(self, name: str) -> None:
        above = home()
        sweep(above)
        require_space(above)
        with writing(above, "temporary files"):
            unnamed = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=above))
            self._lock = os.open(unnamed, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # a sweep sees the folder only once it is locked
            self.path = above / f"{unnamed.name.removeprefix('.')}{_SUFFIX}"
            unnamed.rename(self.path)

    def close(self) -> None:
        """Delete the folder; safe to call twice."""
        if self._lock < 0:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1


def sweep(above: Path) -> list[Path]:
    """Delete the scratch folders in `above` whose owners are gone; return what was deleted."""
    deleted: list[Path] = []
    for path in above.iterdir():
        if not _NAME.fullmatch(path.name):
            continue
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # a link, a file, another user's, or another run was faster
            continue
        try:
            if os.fstat(handle).st_uid != os.getuid():
                continue
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
            deleted.append(path)
        except BlockingIOError:
            continue  # in use
        finally:
            os.close(handle)
    return deleted

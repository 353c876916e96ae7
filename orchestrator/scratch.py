"""Temporary folders that do not pile up, even when their owner is killed.

A folder is alive while its owner holds the lock on the file in it. The kernel drops the lock with
the process, however that ends, so the next run can tell an abandoned folder from one in use.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

_LONGEST = 24  # characters; Unix socket paths end at 107 and Ray's own part takes about 70


def home() -> Path:
    """This user's folder under the system's temporary directory; others cannot write into it."""
    base = tempfile.gettempdir()
    path = Path(base if len(base) <= _LONGEST else "/tmp") / f"rehearsal-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
        return path
    return Path(tempfile.mkdtemp(prefix="rehearsal-", dir=path.parent))  # someone else made that


class Scratch:
    """A private folder under the system's temporary directory, removed by `close`."""

    def __init__(self, name: str) -> None:
        above = home()
        sweep(above)
        self.path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=above))
        unnamed = self.path / ".locking"  # a sweep sees the file only once it is locked
        self._lock = unnamed.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unnamed.rename(self.path / ".lock")

    def close(self) -> None:
        """Delete the folder; safe to call twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def sweep(home: Path) -> list[Path]:
    """Delete the folders in `home` whose owners are gone; return what was deleted."""
    deleted: list[Path] = []
    for lock in home.glob("*/.lock"):
        try:
            with lock.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
                deleted.append(lock.parent)
        except (BlockingIOError, FileNotFoundError):
            continue  # in use, or another run was faster
    return deleted

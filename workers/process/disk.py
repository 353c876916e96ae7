"""Disk access with clear errors for full or read-only disks, and temporary folders.

Imports only the standard library at import time, so that commands can report missing packages.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from workers.errors import CheckpointError, RehearsalError

if TYPE_CHECKING:
    from workers.records.processes import FileRecord

T = TypeVar("T")
R = TypeVar("R")
_THREADS = 8
_MEANWHILE_SECONDS = 0.2
_LEAST_BYTES = 16 << 20  # with less, Ray's servers wait for a minute and then end
_GONE, _CLOSED = "put the folder back", "let this user write there"
_TAKEN = "move it to another place"
_FIXES = {
    errno.EISDIR: _TAKEN, errno.EEXIST: _TAKEN, errno.ENOTEMPTY: _TAKEN,
    errno.ENOENT: _GONE, errno.ENOTDIR: _GONE, errno.ESTALE: _GONE,
    errno.EROFS: _CLOSED, errno.EACCES: _CLOSED, errno.EPERM: _CLOSED,
}  # fmt: skip


@contextmanager
def writing(where: Path, what: str) -> Iterator[None]:
    """Turn a failed write inside the `with` block into a CheckpointError.

    Args:
        where: The file or folder that is written.
        what: Its description for the message.

    Raises:
        CheckpointError: it cannot be written; errors of Rehearsal pass unchanged.
    """
    try:
        yield
    except RehearsalError:  # some are also OSErrors
        raise
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        reason = getattr(error, "strerror", None) or error
        fix = _FIXES.get(_number(error), "free space on that disk")
        raise CheckpointError(
            f"{what} cannot be written: {reason}",
            where=str(where),
            fix=f"{fix}, then resume with resume=auto from the last checkpoint",
        ) from error


def _number(error: Exception) -> int:
    """The errno; safetensors gives it only in its message."""
    told = re.search(r"os error (\d+)", str(error))
    return getattr(error, "errno", None) or (int(told[1]) if told else 0)


def temporary_base() -> Path:
    """The system's folder for temporary files.

    Raises:
        CheckpointError: none of the usual ones can be written.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise CheckpointError(
            "no folder for temporary files takes a file: they are full or read-only",
            where=str(error.strerror),
            fix="free space there, or set TMPDIR to a folder on another disk",
        ) from error


def temporary_folder(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """A folder for temporary files, deleted at the end of its `with` block.

    Raises:
        CheckpointError: it cannot be created.
    """
    base = temporary_base()
    require_space(base)
    with writing(base, "temporary files"):
        return tempfile.TemporaryDirectory(prefix=prefix)


def require_space(folder: Path) -> None:
    """Require free space for temporary files.

    Raises:
        CheckpointError: fewer bytes are free than a run needs for its logs.
    """
    free = shutil.disk_usage(folder).free
    if free < _LEAST_BYTES:
        raise CheckpointError(
            f"the folder for temporary files is full: {free >> 10:,} KiB are free, "
            f"{_LEAST_BYTES >> 10:,} are needed",
            where=str(folder),
            fix="free space on that disk, or set TMPDIR to a folder on another one",
        )


def open_to_readers(path: Path) -> None:
    """Give a file, or every file of a folder, the permissions of ordinary new files.

    Some libraries write through temporary files, which only their owner may read.
    """
    mode = 0o666 & ~_umask()
    for each in [path] if path.is_file() else path.rglob("*"):
        if each.is_file():
            each.chmod(mode)


def _umask() -> int:
    """The umask, read from /proc: os.umask would change it for all threads."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def side_by_side(
    work: Callable[[T], R], items: Iterable[T], meanwhile: Callable[[], object] | None = None
) -> list[R]:
    """Run `work` on each item in threads, for hashing and other system calls; results in order.

    If several items fail, the exception of the first in order is raised.

    Args:
        work: Called on each item.
        items: In order.
        meanwhile: Called every 0.2 s by this thread until all is done; an exception cancels the
            items that have not started.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        begun = [threads.submit(work, item) for item in items]
        try:
            while meanwhile is not None and wait(begun, _MEANWHILE_SECONDS).not_done:
                meanwhile()
            return [each.result() for each in begun]
        finally:
            threads.shutdown(cancel_futures=True)


def settle(path: Path) -> FileRecord:
    """Flush a written file to disk; returns its size and hash."""
    from workers.records.processes import FileRecord

    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(path.name, path.stat().st_size, digest)

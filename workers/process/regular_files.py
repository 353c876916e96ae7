"""Opening of user-named paths if they are regular files, never waiting on pipes or devices."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NotRegularError(OSError):
    """A path that is not a usable regular file; `strerror` says what it is instead."""


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file for reading; never blocks on other kinds of files.

    Raises:
        NotRegularError: It is a folder, pipe, socket or device.
        OSError: It cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        _check(path, os.stat(path).st_mode)  # noqa: PTH116 - a socket cannot be opened at all
        raise
    except ValueError as error:  # the path contains a NUL character
        raise NotRegularError(0, str(error), str(path)) from error
    try:
        _check(path, os.fstat(descriptor).st_mode)
    except NotRegularError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_bounded(path: str | Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        NotRegularError: As `open_regular`, or the file is longer.
        OSError: It cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise NotRegularError(0, f"longer than {limit / 2**20:g} MiB", str(path))
    return content


def _check(path: str | Path, mode: int) -> None:
    for is_kind, name in _KINDS:
        if is_kind(mode):
            raise NotRegularError(0, f"it is {name}, not a file", str(path))


def sha256_of(path: str | Path) -> str:
    """Digest of a regular file's bytes, in hexadecimal. Raises as `open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

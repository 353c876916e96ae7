"""The logs in a run folder: which there are, and their ends."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from orchestrator.run_files.folder import RunFolder
from workers.errors import DataError

_SHOWN = 1 << 16  # bytes of a log's end
_MOST = 100  # logs


@dataclass(frozen=True, slots=True)
class Log:
    """The end of a log."""

    name: str  # in the run folder
    text: str
    size: int  # bytes
    left_out: int  # bytes before what is shown


def names(folder: RunFolder) -> list[str]:
    """The logs of a run, its own first. Links are left out: they may lead to any file."""
    own = [folder.log, folder.error_log]
    inside = folder.path / "logs"
    try:
        others = sorted(inside.iterdir()) if inside.is_dir() and not inside.is_symlink() else []
    except OSError:
        others = []
    found = [path for path in [*own, *others] if _is_plain(path)]
    return [str(path.relative_to(folder.path)) for path in found[:_MOST]]


def end_of(folder: RunFolder, name: str) -> Log:
    """The end of one of the logs that `names` lists.

    Raises:
        DataError: there is no such log, or it cannot be read.
    """
    if name not in names(folder):
        raise DataError("there is no such log", where=name[:200])
    path = folder.path / name
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            left_out = max(0, size - _SHOWN)
            file.seek(left_out)
            data = file.read(_SHOWN)
    except OSError as error:
        raise DataError(f"the log cannot be read: {error.strerror}", where=str(path)) from error
    if left_out:  # from the next whole line on
        cut = data.find(b"\n") + 1
        left_out, data = left_out + cut, data[cut:]
    return Log(name, data.decode("utf-8", errors="backslashreplace"), size, left_out)


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False

"""How many processor cores this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def usable_cores() -> float:
    """Cores of this process: its affinity, or the quota of its container if that is less."""
    return min([float(len(os.sched_getaffinity(0))), *_quotas()])


def _quotas() -> Iterator[float]:
    """Cores by the quota of each control group that this process is in, where there is one."""
    try:
        lines = _OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            for folder in _upwards(_GROUPS, path):
                yield from _quota(_read(folder / "cpu.max").split())
        elif "cpu" in controllers.split(","):
            for folder in _upwards(_GROUPS / "cpu", path):
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                yield from _quota([_read(folder / name).strip() for name in names])


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The folder of a group and of those around it; a container may see only the outermost."""
    folder = root / path.lstrip("/")
    while folder.is_relative_to(root) and ".." not in folder.parts:
        yield folder
        folder = folder.parent
    yield root


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:  # of another version, or outside of this container
        return ""


def _quota(words: list[str]) -> Iterator[float]:
    """Cores by "quota period" in microseconds; a group without a limit has "max" or -1."""
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]) > 0:
        yield int(words[0]) / int(words[1])

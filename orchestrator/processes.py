"""Ending a worker's process without waiting for Ray."""

from __future__ import annotations

import platform
from collections.abc import Iterable

import psutil

from workers.messages import RoleInfo


def end_here(infos: Iterable[RoleInfo], title: str) -> None:
    """Kill workers' processes, as far as they are on this machine.

    Ray asks a process to end before it makes it: the place of one that is stopped or hangs is free
    ten seconds later only.

    Args:
        infos: Who is where; processes that are gone already are passed over.
        title: What Ray calls the processes of these workers; whatever else has a pid now is spared.
    """
    for info in infos:
        if info.node != platform.node():
            continue
        try:
            process = psutil.Process(info.pid)
            if title in "".join(process.cmdline()[:1]):
                process.kill()
        except psutil.Error:
            continue

"""End a worker's process without waiting for Ray."""

from __future__ import annotations

import platform
from collections.abc import Iterable

import psutil

from workers.records.processes import RoleInfo


def end_here(infos: Iterable[RoleInfo], title: str) -> None:
    """Kill those of the workers' processes that run on this machine.

    Ray first requests a process to end and kills it later, so the resources of a stopped or hung
    process would become free only ten seconds later.

    Args:
        infos: Processes and nodes of the workers; processes that have ended are skipped.
        title: Ray's title for the processes of these workers; a process of another title, which
            reuses the pid, is not killed.
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

"""Operating-system access to processes: end a worker's process, and the age of this one."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path

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


def process_seconds() -> float:
    """Age of this process in seconds; changes of the system clock have no effect."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # seconds after boot; field 22 of proc(5)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began

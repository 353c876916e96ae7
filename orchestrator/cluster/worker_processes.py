"""What is asked of the system about processes: to end a worker's, and the age of this one."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from workers.records.processes import RoleInfo


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


def process_seconds() -> float:
    """Since this process began; the machine's clock may have been set meanwhile."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # after the machine; field 22 of proc(5)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began

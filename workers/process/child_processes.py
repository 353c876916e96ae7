"""Child processes for foreign code: each leads a session and is killed with all its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def module_command(module: str, *arguments: str) -> list[str]:
    """Command for one of our modules; files in the working folder cannot shadow its imports."""
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """The environment of this process with our modules first on PYTHONPATH."""
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def end_group(child: subprocess.Popen[bytes]) -> int:
    """Kill a child that leads a session, and the processes of its group; returns its exit code."""
    with suppress(ProcessLookupError, PermissionError):  # no process is left
        os.killpg(child.pid, signal.SIGKILL)
    return child.wait()

"""Processes for code of others: each leads a session, and is ended with all it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def module_command(module: str, *arguments: str) -> list[str]:
    """How to run one of our modules; files in the working folder do not shadow what it imports."""
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """The environment of this process, in which our modules are found first."""
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def end_group(child: subprocess.Popen[bytes]) -> int:
    """End a child that leads a session, and whatever it has started there; its exit code."""
    with suppress(ProcessLookupError, PermissionError):  # nobody is left
        os.killpg(child.pid, signal.SIGKILL)
    return child.wait()

"""What a report says about the machine; imports only Python's own modules."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess

_QUERY = "name,driver_version,memory.total,memory.used"
_PACKAGES = ("torch", "transformers", "deepspeed", "vllm", "ray", "peft")


def versions() -> dict[str, str]:
    """Versions of the packages that matter; those that are not installed are left out."""
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in _PACKAGES if name in installed}


def gpus() -> list[str]:
    """One line per GPU by nvidia-smi; [] without it."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []

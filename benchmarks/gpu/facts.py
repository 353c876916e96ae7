"""What a report says about the machine; imports only Python's own modules."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess

_PACKAGES = ("torch", "transformers", "deepspeed", "vllm", "ray", "peft")


def versions() -> dict[str, str]:
    """Versions of the packages that matter; those that are not installed are left out."""
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in _PACKAGES if name in installed}


def gpus() -> list[str]:
    """One line per GPU by nvidia-smi; [] without it."""
    return _ask("name,driver_version,memory.total,memory.used")


def memory_of() -> list[int]:
    """MiB of each GPU; [] without nvidia-smi."""
    return _numbers("memory.total")


def memory_in_use() -> list[int]:
    """MiB in use on each GPU, by all processes; [] without nvidia-smi."""
    return _numbers("memory.used")


def _numbers(query: str) -> list[int]:
    return [int(line) for line in _ask(query, ",nounits")]


def _ask(query: str, units: str = "") -> list[str]:
    """One line per GPU; [] where nvidia-smi is missing or fails."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={query}", f"--format=csv,noheader{units}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []

"""What the benchmarks share: the machine they ran on, models from scratch, where results go."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from orchestrator import new_model

ROOT = Path(__file__).resolve().parent
DATA = ROOT.parent.parent / "shared" / "data"  # a folder beside the clone


def machine() -> dict[str, object]:
    """What a result rests on."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    return {
        "commit": commit,
        "cpus": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def make_model(folder: Path, texts: Path, sizes: Sequence[str]) -> None:
    """A model with random weights and a tokenizer of the file's own text.

    Args:
        folder: Where to write it.
        texts: A data file.
        sizes: Options of `python -m orchestrator.new_model`.
    """
    if new_model.main([str(folder), "--texts", str(texts), *sizes]) != 0:
        raise SystemExit(1)


def write_result(folder: Path, name: str, found: dict[str, object]) -> Path:
    """Write a dated result; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.date.today().isoformat()}_{name}.json"
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return path


def require(path: Path) -> Path:
    """The data file, or the end of the program."""
    if not path.is_file():
        raise SystemExit(f"no file {path}: give --data FILE")
    return path

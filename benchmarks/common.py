"""What the benchmarks share: the machine they ran on, models from scratch, where results go.

Imports only Python's own modules: machines that run `gpu_workers` may have little else.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.config.schema import Config

ROOT = Path(__file__).resolve().parent
# In an installed package this folder belongs to nobody's project.
RESULTS = ROOT / "results" if (ROOT / "results").is_dir() else Path("benchmark_results")
DATA = ROOT.parent.parent / "shared" / "data"  # a folder beside the clone


def first_line(text: str | None) -> str:
    """The first line of a module's documentation, which asks the benchmark's question."""
    return (text or "").partition("\n")[0]


def machine() -> dict[str, object]:
    """What a result rests on."""
    return {
        "commit": _commit(),
        "cpus": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def _commit() -> str:
    """The commit of this checkout; "" without git, as in an unpacked archive or an image."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return ""
    return described.stdout.strip()


def make_model(folder: Path, texts: Path, sizes: Sequence[str]) -> None:
    """A model with random weights and a tokenizer of the file's own text.

    Args:
        folder: Where to write it.
        texts: A data file.
        sizes: Options of `python -m orchestrator.new_model`.
    """
    from orchestrator import new_model

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


def configuration(*overrides: str) -> Config:
    """What a command line with these arguments composes."""
    from orchestrator.command_line.composition import compose_run

    return compose_run(overrides)


def in_turns(sides: dict[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """A B A B ..., after one turn each that is not counted; each side gives its own number."""
    for side in sides.values():
        side()
    turns = [{name: side() for name, side in sides.items()} for _ in range(repetitions)]
    return {name: [turn[name] for turn in turns] for name in sides}


def medians(found: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(numbers) for name, numbers in found.items()}


def print_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns flush right, the first flush left."""
    cells = [[str(c) for c in row] for row in (heads, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    for row in cells:
        first, *others = (c.rjust(w) for c, w in zip(row, widths, strict=True))
        print(row[0].ljust(len(first)), *others, sep="  ")


MODELS = ("base", "sft", "reward_model")


def run(folder: Path, overrides: Sequence[str]) -> None:
    """One command line of the program; its output is shown if it fails."""
    command = [sys.executable, "-m", "orchestrator.run", *overrides, f"run.dir={folder}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(
        command, cwd=ROOT.parent, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def make_checkpoints(folder: Path, shape: Sequence[str]) -> Path:
    """The three models that PPO needs, trained for a few steps."""
    few = ("pretrain.steps=4", "sft.steps=4") if shape[0].endswith("tiny") else ()
    run(folder, [*shape, *few, "stages=[pretrain,sft,reward_model]"])
    return folder / "checkpoints"


def given(checkpoints: Path) -> list[str]:
    return [f"model.checkpoints.{name}={checkpoints.resolve() / name}" for name in MODELS]

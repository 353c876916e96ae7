"""Runs of the product's commands, each in a process with a deadline, and what they leave behind."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT
from benchmarks.gpu.checks import Bench, ViolatedError
from benchmarks.gpu.facts import memory_in_use, memory_of
from workers.process.child_processes import module_environment

_GRACE_SECONDS = 20.0  # for a run that is told to stop
_POLL_SECONDS = 0.5
_LAST_LINES = 4


def place(bench: Bench) -> list[str]:
    """Keys of the cluster: one GPU for all roles, or this machine's CPU."""
    if not bench.cuda:
        return []
    return ["cluster=one_gpu", f"cluster.gpu_memory_gib={memory_of()[0] / 1024:.4g}"]


def command(
    module: str, arguments: Sequence[str], seconds: float, codes: Sequence[int] = (0,)
) -> str:
    """Run a command; returns its output.

    Args:
        module: What `python -m` runs.
        arguments: Its arguments.
        seconds: When it is ended.
        codes: Exit codes that are no failure.

    Raises:
        ViolatedError: it failed, with its last lines, or did not end in time.
    """
    name = " ".join([module, *arguments[:2]])
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=ROOT.parent, env=module_environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            raise ViolatedError(f"{name} did not end within {seconds:.0f} s") from None
    if process.returncode not in codes:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        last = " | ".join(lines[-_LAST_LINES:])
        raise ViolatedError(f"{name} ended with exit code {process.returncode}: {last}")
    return said


def _end(process: subprocess.Popen[str]) -> None:
    """Let it end its own processes; else Ray's would wait for its death to be noticed."""
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


class Finished:
    """The folder of a run that ended well."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        self._metrics = [json.loads(line) for line in lines]

    def series(self, name: str, stage: str = "ppo") -> list[float]:
        """The values of one metric of a stage, in the order of its steps."""
        return [m["value"] for m in self._metrics if (m["name"], m["stage"]) == (name, stage)]

    @property
    def parity(self) -> float:
        """Largest difference between engine and trainer at any weight sync, nats."""
        return max(self.series("ppo/parity_max"), default=math.nan)


def run(
    bench: Bench, name: str, keys: Sequence[str], seconds: float, experiment: str = "pocket"
) -> Finished:
    """A run of the pocket world; the smallest one in a dry run."""
    folder = bench.folder / name
    experiment = "pocket_tiny" if bench.quick else experiment
    words = [f"+experiment={experiment}", f"run.dir={folder}", *place(bench), *keys]
    command("orchestrator.run", words, seconds)
    return Finished(folder)


class MemoryWatch:
    """The most and the least memory in use on the first GPU, MiB, while its `with` block runs."""

    def __init__(self) -> None:
        self.used: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            self.used += memory_in_use()[:1]

    def __enter__(self) -> MemoryWatch:
        self.used += memory_in_use()[:1]
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=30.0)

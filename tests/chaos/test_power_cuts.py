"""The power fails at random moments: what the disk holds then is copied, mounted and gone on from.

A file system of its own lies in a file, through a loop device. While a run writes to it, a copy of
that file holds what had reached the disk, and nothing that was only in memory.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from benchmarks import chaos
from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.run_files.folder import RunFolder
from orchestrator.telemetry.metrics import comparable, read_metrics

_CUTS = 30
_MIB = 160
pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(1800)]


def _do(*command: object) -> None:
    subprocess.run([*map(str, command)], check=True, capture_output=True, timeout=120)


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    _do("mount", "-o", "loop", image, at)
    try:
        yield at
    finally:
        _do("umount", at)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file with an empty ext4, which this user may mount."""
    if os.getuid() or not (shutil.which("mkfs.ext4") and shutil.which("losetup")):
        pytest.skip("mounting a file system in a file takes root, mkfs.ext4 and losetup")
    file = tmp_path / "disk.img"
    with file.open("wb") as empty:
        empty.truncate(_MIB << 20)
    _do("mkfs.ext4", "-q", "-F", file)
    try:
        with mounted(file, tmp_path / "probe"):
            pass
    except subprocess.SubprocessError:
        pytest.skip("no loop device can be mounted here")
    return file


@contextmanager
def stopped(run: chaos.Run) -> Iterator[None]:
    """A copy takes a tenth of a second; a power cut takes none."""
    driver = psutil.Process(run.process.pid)
    everyone = [driver, *driver.children(recursive=True)]
    for name in (signal.SIGSTOP, signal.SIGCONT):
        for process in everyone:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(name)
        if name == signal.SIGSTOP:
            yield


def test_a_power_cut_costs_at_most_one_checkpoint(tmp_path: Path, image: Path) -> None:
    models = chaos.prepare(tmp_path)
    choose = random.Random(0)
    args = Namespace(every_steps=2, probe_seconds=30.0, zero=1, ranks=1, engines=1)
    overrides = [*models, *chaos.settings(args, 240)]
    cuts: list[tuple[Path, list[str]]] = []
    with mounted(image, tmp_path / "disk") as disk:
        run = chaos.Run(disk / "run", overrides)
        saved = SavedRuns(RunFolder(disk / "run"))
        assert run.wait_for(lambda: len(saved.whole()) >= 2)
        while run.running and len(cuts) < _CUTS:
            time.sleep(choose.uniform(0.1, 1.6))
            with stopped(run):
                copy = tmp_path / f"cut-{len(cuts)}.img"
                shutil.copyfile(image, copy)
                cuts.append((copy, [path.name for path in saved.whole()]))
        assert run.end() == 0
        whole = list(comparable(read_metrics(disk / "run" / "metrics.jsonl")))
        weights = chaos.weights(disk / "run")
    assert len(cuts) >= 20, "the run ended too early"
    behind: list[int] = []
    for copy, known in cuts:
        with mounted(copy, tmp_path / "after") as disk:
            newest, skipped = SavedRuns(RunFolder(disk / "run")).newest()
            assert newest is not None, (copy.name, skipped)
            names = [*known[::-1]]
            # a checkpoint may reach the disk before its name is seen here
            behind.append(names.index(newest.path.name) if newest.path.name in names else 0)
    assert max(behind) <= 1, behind  # 30 cuts: 0 each time
    for copy, _ in choose.sample(cuts, 2):
        with mounted(copy, tmp_path / "again") as disk:
            # records name the models by the path of the run folder
            run = chaos.Run(disk / "run", overrides)
            assert run.end() == 0
            assert list(comparable(read_metrics(disk / "run" / "metrics.jsonl"))) == whole
            assert chaos.weights(disk / "run") == weights

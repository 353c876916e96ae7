"""One run that is asked to stop in every stage, each time in another way, and goes on each time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from benchmarks import chaos
from benchmarks.common import ROOT
from orchestrator.telemetry.metrics import comparable, read_metrics

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(1800)]

_OVERRIDES = [
    "pretrain.steps=40", "sft.steps=30", "algorithm.iterations=8", "algorithm.evaluate_every=0",
    "run.checkpoint.every_steps=1", "run.grace_seconds=30",
]  # fmt: skip
_STOPPED = 8


class _Terminal:
    """A run on a terminal of its own, in a session of its own, as a shell starts a job."""

    def __init__(self, folder: Path, *, pipe: bool = False) -> None:
        self.folder = folder
        self.said = bytearray()
        self.shown, theirs = os.pipe() if pipe else os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.run", "+experiment=pocket_tiny", "resume=auto",
             f"run.dir={folder}", *_OVERRIDES],
            stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, start_new_session=True,
            env=os.environ | {"COLUMNS": "100", "TERM": "xterm", "PYTHONPATH": str(ROOT.parent)},
        )  # fmt: skip
        os.close(theirs)
        self.began = psutil.Process(self.process.pid).create_time()
        os.set_blocking(self.shown, False)

    def read(self) -> None:
        """A reader who keeps up: a full pipe would stop the run."""
        try:
            while part := os.read(self.shown, 1 << 16):
                self.said += part
        except OSError:
            pass

    def wait(self, until: Callable[[], bool]) -> None:
        latest = time.monotonic() + 300
        while not until():
            assert self.process.poll() is None, "it ended before"
            assert time.monotonic() < latest, "it took too long"
            self.read()
            time.sleep(0.02)

    def in_stage(self, stage: str) -> bool:
        """Whether this process, not one before it, has done a step of the stage."""
        metrics, workers = (self.folder / name for name in ("metrics.jsonl", "workers.json"))
        try:
            times = [self.began, workers.stat().st_mtime, metrics.stat().st_mtime]
            last = metrics.read_text(encoding="utf-8").splitlines()[-1:]
        except OSError:
            return False
        return times == sorted(times) and any(f'"stage": "{stage}",' in line for line in last)

    def starts_servers(self) -> bool:
        """Whether it starts Ray's servers: it has printed its plan, and hears signals."""
        return psutil.Process(self.process.pid).children() != []

    def hang_up(self) -> None:
        os.close(self.shown)
        self.shown = -1

    def end(self, seconds: float) -> tuple[int, float]:
        """Exit code, and seconds until it was there."""
        began = time.monotonic()
        while self.process.poll() is None:
            assert time.monotonic() < began + seconds, f"still there after {seconds} s"
            self.read()
            time.sleep(0.05)
        return self.process.returncode, time.monotonic() - began


def _to_group(name: signal.Signals) -> Callable[[_Terminal], None]:
    return lambda run: os.killpg(run.process.pid, name)


def _to_all(name: signal.Signals) -> Callable[[_Terminal], None]:
    """Every process by itself: a batch system knows them by their control group."""

    def send(run: _Terminal) -> None:
        driver = psutil.Process(run.process.pid)
        for process in [*driver.children(recursive=True), driver]:
            process.send_signal(name)

    return send


def _twice(run: _Terminal) -> None:
    for _ in range(2):
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.5)


_WAYS: list[tuple[str, Callable[[_Terminal], None], int]] = [
    ("pretrain", _to_group(signal.SIGTERM), _STOPPED),
    ("sft", _to_all(signal.SIGTERM), _STOPPED),
    ("reward_model", _to_group(signal.SIGHUP), _STOPPED),
    ("ppo", _to_all(signal.SIGUSR1), _STOPPED),
    ("ppo", _twice, 130),
    ("ppo_ptx", _to_group(signal.SIGUSR2), _STOPPED),
]


def test_a_run_that_is_stopped_in_every_stage_ends_as_if_it_never_was(tmp_path: Path) -> None:
    calm = _Terminal(tmp_path / "calm")
    assert calm.end(600)[0] == 0
    folder = tmp_path / "struck"
    found = dict[str, tuple[int, float]]()
    for stage, ask, expected in _WAYS:
        run = _Terminal(folder)
        run.wait(lambda run=run, stage=stage: run.in_stage(stage))
        children = psutil.Process(run.process.pid).children(recursive=True)
        ask(run)
        found[f"{stage} {len(found)}"] = code, seconds = run.end(60)
        run.read()
        assert code == expected, (found, run.said.decode(errors="replace")[-3000:])
        assert seconds < 30, found
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive, alive
    # the reader of a pipe leaves, then a terminal is closed without its hang-up reaching the run
    piped = _Terminal(folder, pipe=True)
    piped.wait(piped.starts_servers)
    piped.hang_up()
    piped.wait(lambda: piped.in_stage("ppo_ptx"))
    piped.process.send_signal(signal.SIGTERM)
    assert piped.process.wait(60) == _STOPPED
    closed = _Terminal(folder)
    closed.wait(closed.starts_servers)
    closed.hang_up()
    assert closed.process.wait(300) == 0
    undisturbed = list(comparable(read_metrics(tmp_path / "calm" / "metrics.jsonl")))
    assert list(comparable(read_metrics(folder / "metrics.jsonl"))) == undisturbed
    assert chaos.weights(folder) == chaos.weights(tmp_path / "calm")
    print(found)  # noqa: T201  shown with -s

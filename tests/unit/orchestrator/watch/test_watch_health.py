"""Whether a run goes on and its processes are there."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.watched import folder_at

from orchestrator.report.measured import Measured
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.lock import holder
from orchestrator.watch.health import health_of, state_of


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return folder_at(tmp_path / "run")


def test_the_holder_of_the_lock_is_the_process_of_the_run(folder: RunFolder) -> None:
    assert state_of(folder).word == "stopped"
    with folder.locked():
        assert holder(folder.path / ".lock") == os.getpid()
        assert (state_of(folder).word, state_of(folder).process) == ("running", os.getpid())
        with pytest.raises(Exception, match="another process"), folder.locked():
            pass  # looking at the lock did not take it
    assert state_of(folder).process is None


def test_a_run_that_is_over_is_finished_or_failed(folder: RunFolder) -> None:
    folder.error_log.write_text("Traceback")
    assert state_of(folder).word == "failed"
    folder.summary.write_text("{}")
    assert state_of(folder).word == "finished"


def test_a_run_that_waits_says_for_what_until_it_goes_on(folder: RunFolder) -> None:
    folder.waiting.write_text("label waits for people\n  fix: rank\n")
    found = state_of(folder)
    assert (found.word, found.request) == ("waiting", "label waits for people\n  fix: rank")
    with folder.locked():
        assert (state_of(folder).word, state_of(folder).request) == ("running", "")
    folder.reopen({})
    assert state_of(folder).word == "stopped"


def _worker(rank: int, pid: int, node: str) -> dict:
    return {"role": "reward", "rank": rank, "pid": pid, "node": node, "device": "cpu"}


def test_a_process_runs_is_gone_or_has_only_its_number(folder: RunFolder) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = platform.node()
    workers = [_worker(0, os.getpid(), here), _worker(1, ended.pid, here), _worker(2, 1, "other")]
    folder.workers.write_text(json.dumps(workers))
    losses = [
        {"time": 1.0, "lost": ["reward rank 1", "reward rank 0"], "stage": "ppo", "step": 1,
         "error": "a"},
        {"time": 2.0, "given_up": "reward rank 1", "stage": "ppo", "step": 2, "error": "b"},
    ]  # fmt: skip
    folder.losses.write_text("".join(json.dumps(line) + "\n" for line in losses))
    found = health_of(folder, Measured())
    assert [(w.process, w.losses) for w in found.workers] == [
        ("runs", 1), ("gone", 2), ("on another machine", 0),
    ]  # fmt: skip
    assert [(loss.error, loss.for_good) for loss in found.losses] == [("b", True), ("a", False)]
    os.utime(folder.workers, (1.0, 1.0))  # written before the process with this number began
    assert health_of(folder, Measured()).workers[0].process == "gone"


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"a": 1}', '[{"role": "x"}]', "[" * 5000, '[{"pid": "1"}]', "null"]
)
def test_damaged_records_are_noted(folder: RunFolder, text: str) -> None:
    for file in (folder.workers, folder.losses, folder.non_finite):
        file.write_text(text + "\n")
    found = health_of(folder, Measured())
    assert (found.workers, found.losses, found.culprits) == ([], [], [])
    assert len(found.notes) == 3

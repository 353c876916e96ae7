"""What a run remembers of lost workers, over all the processes that work on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes.session import Run
from test_recovery import go
from test_resume_stages import _config

from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.recipe import summarise
from orchestrator.results.summary import read_summary, write_summary
from orchestrator.run_files.folder import RunFolder
from orchestrator.supervision.lost_workers import Losses
from orchestrator.supervision.pending import Position
from workers.errors import RehearsalError, RoleDiedError

GONE = RoleDiedError("signal 9")


def test_counts_go_on_in_another_process_and_torn_lines_count_for_nothing(tmp_path: Path) -> None:
    folder, told = RunFolder(tmp_path).create(), list[str]()
    first = Losses(folder, Position("ppo", 3), told.append)
    first.add(["rollout rank 1"], GONE, 2)
    first.add(["policy rank 0", "policy rank 1"], GONE)
    first.give_up("rollout rank 1", GONE)
    with folder.losses.open("a") as file:
        file.write('{"time": 1.0, "lost": ["rollo')
    second = Losses(folder, Position())
    assert (second.count, second.discarded, second.given_up) == (2, 2, ["rollout rank 1"])
    second.add(["reward rank 0"], GONE, 1)
    third = Losses(folder, Position())
    assert (third.count, third.discarded) == (3, 3)
    assert second.by_role == third.by_role == {"rollout": 1, "policy": 2, "reward": 1}
    assert told == [
        "rollout rank 1 lost in stage ppo, step 3: signal 9",
        "policy rank 0, policy rank 1 lost in stage ppo, step 3: signal 9",
        "the run continues without rollout rank 1: signal 9",
    ]


@pytest.mark.parametrize("line", ["[]", "7", '{"lost": [], "discarded_replies": "x"}', "\x00",
                                  '{"lost": "all of them"}'])  # fmt: skip
def test_a_file_that_somebody_else_wrote_ends_nothing(tmp_path: Path, line: str) -> None:
    folder = RunFolder(tmp_path).create()
    folder.losses.write_text(line + "\n")
    found = Losses(folder, Position())
    assert (found.discarded, found.by_role) == (0, {})


def test_a_run_that_was_killed_and_resumed_sums_its_losses_up(tmp_path: Path) -> None:
    run = Run(tmp_path, _config())
    run.hub.faults.deaths["policy.update"] = {1}
    run.session.losses.add(["rollout rank 0"], GONE, 3)
    run.hub.faults.dead.add("critic.snapshot")
    with pytest.raises(RehearsalError):
        go(run)
    before = run.session.losses.count
    found, _ = SavedRuns(run.folder).newest()
    assert found is not None
    resumed = Run(tmp_path, _config(), found)
    resumed.hub.faults.deaths["policy.update"] = {1}
    resumed.session.losses.add(["rollout rank 1"], GONE, 4)
    go(resumed)
    summary = summarise(resumed.session)
    write_summary(resumed.folder, summary)
    plain = json.loads(resumed.folder.summary.read_text())
    assert (plain["restarts"], plain["discarded_replies"]) == (before + 2, 7)
    assert before >= 1
    assert read_summary(resumed.folder.summary).restarts == before + 2


def test_the_summary_names_engines_that_the_run_went_on_without(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.session.losses.give_up("rollout rank 1", GONE)
    write_summary(run.folder, summarise(run.session))
    assert json.loads(run.folder.summary.read_text())["given_up"] == ["rollout rank 1"]
    assert read_summary(run.folder.summary).given_up == ("rollout rank 1",)

"""Keys that leave the choice to the run, and what a resumed run makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes.progress import progress

from orchestrator.checkpoints.config_changes import OPEN, flat, plain_config, set_key
from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import Config
from orchestrator.config.training import OldLogprobs
from orchestrator.run_files.folder import RunFolder
from orchestrator.session import resume
from orchestrator.session.resume import Start, find_start, package_versions

THREADS = {f"cluster.roles.{role}.threads": 1
           for role in ("rollout", "reward", "reference", "policy", "critic")}  # fmt: skip


def config(folder: Path, again: str = "", **values: Any) -> Config:
    made = Config(experiment="pocket", resume=again, run=RunConfig(dir=str(folder)))
    for key, value in values.items():
        set_key(made, key.replace("__", "."), value)
    return made


def resumed(folder: Path, before: dict[str, Any], **now: Any) -> Start:
    """Resume from a checkpoint of a run with other values."""
    run = RunFolder(folder).create()
    run.config.write_text("experiment: pocket\n")
    saved = config(folder)
    for key, value in before.items():
        set_key(saved, key, value)
    runs = SavedRuns(run)
    facts = {"config": plain_config(saved), "versions": package_versions()}
    runs.publish(runs.begin("ppo", 1), [], progress("ppo", 1), facts, [])
    return find_start(config(folder, "auto", **now))


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "cores_of", lambda _: 4.7)


def test_open_keys_are_left_open_by_default() -> None:
    default = flat(plain_config(Config()))
    assert {key: default[key] for key in OPEN} == OPEN


def test_a_fresh_run_records_the_cores_that_there_are(tmp_path: Path) -> None:
    assert find_start(config(tmp_path / "a")).settled == {"cluster.cores": 4}
    assert find_start(config(tmp_path / "b", "auto")).settled == {"cluster.cores": 4}
    assert find_start(config(tmp_path / "c", cluster__cores=9)).settled == {}


@pytest.mark.parametrize(("before", "after", "exact"), [(4, 4, True), (2, 2, True), (16, 4, False)])
def test_a_resumed_run_keeps_its_cores_or_says_that_there_are_fewer(
    tmp_path: Path, before: int, after: int, exact: bool
) -> None:
    start = resumed(tmp_path, {"cluster.cores": before})
    assert start.settled == {"cluster.cores": after}
    note = {
        2: ["computes on 2 of 4 cores, as at the checkpoint: cluster.cores=4 takes them all"],
        4: [],
        16: ["changed since the checkpoint: cluster.cores 16 -> 4; not bit-identical from here on"],
    }
    assert start.notes == note[before]
    assert (not start.doubts) == exact


def test_a_given_number_wins_and_is_said(tmp_path: Path) -> None:
    start = resumed(tmp_path, {"cluster.cores": 2}, cluster__cores=3)
    assert start.settled == {}
    assert "cluster.cores 2 -> 3" in start.doubts[0]


def test_a_run_of_an_earlier_version_goes_on_as_it_was(tmp_path: Path) -> None:
    start = resumed(tmp_path, THREADS | {"algorithm.old_logprobs": "trainer"})
    kept = THREADS | {"algorithm.old_logprobs": "trainer"}
    assert start.settled == kept | {"cluster.cores": 4}
    assert start.doubts == []
    assert start.notes[0].startswith("as at the checkpoint: cluster.roles.rollout.threads=1, ")
    made = config(tmp_path)
    for key, value in start.settled.items():
        set_key(made, key, value)
    assert made.algorithm.old_logprobs is OldLogprobs.trainer
    assert (made.cluster.roles.critic.threads, made.cluster.cores) == (1, 4)

"""`rehearsal runs`: what a folder tells about its run."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest
import yaml

from orchestrator.results.reward_model_figures import RewardModelFigures
from orchestrator.results.summary import (
    EvaluationRow,
    LedgerTotals,
    Preference,
    Summary,
    Timing,
    write_summary,
)
from orchestrator.run_files.folder import RunFolder
from orchestrator.runs.listing import headline, main
from orchestrator.runs.reading import find_runs, read_run
from workers.errors import ConfigError


def _make(
    path: Path,
    stages: tuple[str, ...] = ("sft", "ppo"),
    saved: tuple[str, int, list[str]] | None = None,
    began: float = 1_700_000_000.0,
) -> Path:
    path.mkdir(parents=True)
    config = path / "config.yaml"
    config.write_text(yaml.safe_dump({"experiment": path.parent.name, "stages": list(stages)}))
    os.utime(config, (began, began))
    (path / "metrics.jsonl").touch()
    if saved is not None:
        stage, step, finished = saved
        state = path / "state" / f"000003-{stage}-{step}"
        state.mkdir(parents=True)
        text = json.dumps({"stage": stage, "step": step, "finished": finished})
        (state / "progress.json").write_text(text)
    return path


def test_a_run_whose_newest_checkpoint_has_all_stages_is_finished(tmp_path: Path) -> None:
    run = _make(tmp_path / "a" / "1", saved=("ppo", 24, ["sft", "ppo"]))
    older = run / "state" / "000002-sft-9"
    older.mkdir()
    (older / "progress.json").write_text('{"stage": "sft", "step": 9, "finished": []}')
    assert (read_run(run).state, read_run(run).place) == ("finished", "ppo 24")


def test_a_run_between_stages_is_stopped_at_its_newest_checkpoint(tmp_path: Path) -> None:
    found = read_run(_make(tmp_path / "a" / "1", saved=("ppo", 12, ["sft"])))
    assert (found.state, found.place, found.experiment) == ("stopped", "ppo 12", "a")


def test_a_run_without_a_checkpoint_is_stopped_at_no_place(tmp_path: Path) -> None:
    found = read_run(_make(tmp_path / "a" / "1"))
    assert (found.state, found.place) == ("stopped", "")


def test_a_run_that_asks_people_waits(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = _make(tmp_path / "a" / "1", saved=("label", 0, ["sft"]))
    RunFolder(run).waiting.write_text("label waits for people")
    assert read_run(run).state == "waiting"
    assert main([str(tmp_path), "--state", "waiting", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["state"], found["checkpoint"]) == ("waiting", "label 0")
    with RunFolder(run).locked():
        assert read_run(run).state == "running"


def test_a_run_with_an_error_has_failed(tmp_path: Path) -> None:
    run = _make(tmp_path / "a" / "1", saved=("ppo", 12, ["sft"]))
    (run / "error.log").write_text("Traceback")
    assert read_run(run).state == "failed"


def test_a_run_is_running_while_a_process_holds_its_lock(tmp_path: Path) -> None:
    run = _make(tmp_path / "a" / "1", saved=("ppo", 24, ["sft", "ppo"]))
    with (run / ".lock").open("w") as lock:
        assert read_run(run).state == "finished"
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_run(run).state == "running"
        with pytest.raises(ConfigError, match="another process"), RunFolder(run).locked():
            pass
    assert read_run(run).state == "finished"


def test_looking_at_a_run_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    run = _make(tmp_path / "a" / "1")
    with RunFolder(run).locked():
        assert read_run(run).state == "running"
        with (run / ".lock").open("rb") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_runs_are_found_by_age_and_sweeps_job_by_job(tmp_path: Path) -> None:
    old = _make(tmp_path / "ppo" / "1", began=1_700_000_000.0)
    new = _make(tmp_path / "sft" / "2", began=1_700_000_900.0)
    job = _make(tmp_path / "sft" / "sweep" / "0", began=1_700_000_500.0)
    (tmp_path / "sft" / "config.yaml").write_text("not: a run")
    _make(new / "earlier-1")  # an attempt that was set aside is part of its run
    assert find_runs(tmp_path) == [new, job, old]


def test_a_damaged_configuration_and_summary_are_told_and_the_rest_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # the path of a test's folder can be long
    run = _make(tmp_path / "a" / "1", saved=("ppo", 12, ["sft"]))
    (run / "config.yaml").write_text("- a list")
    (run / "summary.json").write_text("{")
    assert main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "stopped at ppo 12" in out
    assert err.count("damaged: ") == 2


def test_json_has_the_same_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _make(tmp_path / "a" / "1", saved=("ppo", 24, ["sft", "ppo"]))
    summary = Summary(
        ledger=LedgerTotals(10, 9, 1), timing=Timing(total_seconds=61.5, stages={"sft": 3.0})
    )
    write_summary(RunFolder(run), summary)
    assert main([str(tmp_path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["run"] == str(run)
    assert found["state"] == "finished"
    assert found["seconds"] == 61.5
    assert found["result"] == "9 sequences trained"
    assert found["started"].startswith("2023-11-1")


def test_only_runs_of_a_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _make(tmp_path / "a" / "1", saved=("ppo", 24, ["sft", "ppo"]))
    _make(tmp_path / "a" / "2", saved=("ppo", 3, ["sft"]))
    assert main([str(tmp_path), "--state", "stopped", "--json"]) == 0
    assert [each["checkpoint"] for each in json.loads(capsys.readouterr().out)] == ["ppo 3"]


@pytest.mark.parametrize("name", ["missing", ""])
def test_no_folder_and_a_folder_without_runs_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / name)]) == 2
    assert "fix: name the folder that holds the runs" in capsys.readouterr().err


def test_the_headline_is_what_tells_most() -> None:
    models = {"sft": EvaluationRow(gold_mean=1.5), "ppo": EvaluationRow(gold_mean=2.25)}
    wins = (Preference("ppo", "sft", 0.72, 0.7, 0.74, 1024),)
    assert headline(Summary(models=models, preferred=wins)) == "PPO preferred to SFT 72%"
    assert headline(Summary(models=models)) == "PPO gold score 2.25"
    assert headline(Summary()) == ""
    assert headline(Summary(reward_model=RewardModelFigures())) == ""

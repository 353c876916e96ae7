"""`orchestrator.api`: what Python gets from a command line, and from a run folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from fakes.watched import folder_at, sample, write_metrics, write_samples

from orchestrator import api
from orchestrator.api import running
from orchestrator.results.summary import EvaluationRow, Preference, Summary, write_summary
from workers.errors import ConfigError, DataLineError, UnknownKeyError


def test_importing_it_loads_no_engine_and_no_table_library() -> None:
    code = (
        "import sys; from orchestrator import api; "
        "print({'torch', 'ray', 'pandas', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_arguments_are_those_of_the_command() -> None:
    config = api.compose("+experiment=pocket_tiny", "algorithm=rloo", "seed=3")
    assert (config.experiment, config.seed, config.algorithm.advantage) == (
        "pocket_tiny",
        3,
        "rloo",
    )
    with pytest.raises(UnknownKeyError, match=r"algorithm\.gamm"):
        api.compose("+experiment=pocket_tiny", "algorithm.gamm=1")
    with pytest.raises(ConfigError, match="-m is a flag"):
        api.compose("-m", "seed=1,2")
    with pytest.raises(ConfigError, match="no such folder"):
        api.compose("+experiment=pocket_tiny", config_dir="nowhere")


def test_own_experiments_are_found_in_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "my files" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\ndefaults:\n  - pocket_tiny\n  - _self_\nseed: 7\n")
    assert api.compose("+experiment=mine", config_dir=tmp_path / "my files").seed == 7


def test_a_plan_prints_what_the_command_prints() -> None:
    planned = api.plan("+experiment=pocket_tiny")
    assert str(planned).startswith("Plan of pocket_tiny, seed 0, results in ")
    assert planned.plan.layout.roles
    with pytest.raises(ConfigError, match="sequences"):
        api.plan("+experiment=pocket_tiny", "algorithm.sequences_per_minibatch=1000000")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with an evaluation, metrics and samples of two stages."""
    run = folder_at(tmp_path / "run")
    run.config.write_text(yaml.safe_dump({"experiment": "mine", "stages": ["ppo"]}))
    write_metrics(run, {"ppo/score_mean": [1.0, 2.0], "ppo/kl_sequence": [0.1, 0.2]})
    write_samples(run, [sample(0), sample(1), sample(3, stage="rloo"), sample(4)])
    rows = {"sft": EvaluationRow(gold_mean=1.5), "ppo": EvaluationRow(gold_mean=2.5)}
    write_summary(
        run, Summary(models=rows, preferred=(Preference("ppo", "sft", 0.7, 0.6, 0.8, 64),))
    )
    published = run.path / "checkpoints" / "ppo"
    published.mkdir()
    (published / "config.json").write_text("{}")
    (run.path / "checkpoints" / "half").mkdir()
    return run.path


def test_metrics_are_a_long_table(folder: Path) -> None:
    table = api.load(folder).metrics("ppo/score_mean", stage="ppo")
    assert list(table.columns) == ["stage", "step", "name", "value", "unit", "timing"]
    assert table.step.tolist() == [1, 2]
    assert table.value.tolist() == [1.0, 2.0]
    assert set(api.load(folder).metrics().name) == {"ppo/score_mean", "ppo/kl_sequence"}
    assert api.load(folder).metrics("ppo/none").empty


def test_the_evaluation_is_a_row_per_model(folder: Path) -> None:
    table = api.load(folder).evaluation()
    assert table.index.tolist() == ["sft", "ppo"]
    assert table.gold_mean.tolist() == [1.5, 2.5]
    row = table.loc["ppo"]
    assert row.preferred_to_sft == 0.7
    assert (row.preferred_to_sft_low, row.preferred_to_sft_high) == (0.6, 0.8)
    assert "rude_rate" not in table


def test_rollouts_come_one_by_one(folder: Path) -> None:
    run = api.load(folder)
    assert [each.id for each in run.rollouts()] == [0, 1, 3, 4]
    assert [each.id for each in run.rollouts(stage="ppo", step=1)] == [0, 1]
    with (folder / "samples" / "rollouts.jsonl").open("a") as file:
        file.write('{"stage": "ppo", "st')  # the run is writing
    assert len(list(run.rollouts())) == 4
    with (folder / "samples" / "rollouts.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(DataLineError, match=r"rollouts.jsonl:5"):
        list(run.rollouts())


def test_models_are_the_published_folders(folder: Path) -> None:
    run = api.load(folder)
    assert run.models == {"ppo": folder / "checkpoints" / "ppo"}
    assert repr(run) == f"Run({str(folder)!r}, mine, stopped)"
    assert [each.path for each in api.find(folder.parent)] == [folder]
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        api.load(folder.parent)


def _program(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `api.run` start this instead of a run."""
    script = tmp_path / "program.py"
    script.write_text(text)
    follow = running._follow

    def instead(command: list[str], quiet: bool) -> tuple[int, str]:
        return follow([sys.executable, str(script), *command[3:]], quiet)

    monkeypatch.setattr(running, "_follow", instead)


def test_a_run_gets_its_folder_and_is_read_at_its_end(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _program(tmp_path, "import sys; print(sys.argv[1:])", monkeypatch)
    run = api.run("+experiment=pocket_tiny", f"run.dir={folder}", "run.overwrite=true")
    assert run.path == folder
    said = capsys.readouterr().out
    assert said == f"{['+experiment=pocket_tiny', 'run.overwrite=true', f'run.dir={folder}']}\n"
    api.run("+experiment=pocket_tiny", f"run.dir={folder}", quiet=True)
    assert capsys.readouterr().out == ""


def test_a_failure_is_the_error_that_the_run_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "import sys; print('noise'); "
        "sys.exit(print('error: it broke\\n  where: there\\n  fix: do this') or 4)"
    )
    _program(tmp_path, text, monkeypatch)
    with pytest.raises(api.RunFailedError, match="it broke") as caught:
        api.run("+experiment=pocket_tiny", f"run.dir={tmp_path / 'new'}", quiet=True)
    assert (caught.value.where, caught.value.fix, caught.value.code) == ("there", "do this", 4)


def test_a_death_without_an_error_names_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _program(tmp_path, "import os; print('last words', flush=True); os.abort()", monkeypatch)
    with pytest.raises(api.RunFailedError, match="last words") as caught:
        api.run("+experiment=pocket_tiny", f"run.dir={tmp_path / 'new'}", quiet=True)
    assert caught.value.code == -signal.SIGABRT
    assert str(tmp_path / "new") in caught.value.where


def test_an_interrupt_asks_the_run_to_stop_and_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "saved.json"
    text = f"""
import json, signal, sys, time
def stop(number, frame):
    time.sleep(0.2)
    json.dump(number, open({str(saved)!r}, "w"))
    sys.exit(8)
signal.signal(signal.SIGTERM, stop)
open({str(tmp_path / "ready")!r}, "w").close()
time.sleep(60)
"""
    _program(tmp_path, text, monkeypatch)

    def interrupt() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a user's script
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            api.run("+experiment=pocket_tiny", f"run.dir={tmp_path / 'new'}", quiet=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert json.loads(saved.read_text()) == signal.SIGTERM

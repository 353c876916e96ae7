"""`rehearsal runs --sweep`: the jobs of a sweep side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.results.summary import EvaluationRow, Preference, Summary, write_summary
from orchestrator.run_files.folder import RunFolder
from orchestrator.runs.listing import main
from orchestrator.runs.reading import find_runs, read_run
from orchestrator.runs.spread import Spread
from orchestrator.runs.sweep import figure_of, sweep_of
from orchestrator.telemetry.metrics import MetricRecord


def _job(root: Path, number: int, seed: int, kl: float, rate: float | None) -> None:
    folder = root / str(number)
    folder.mkdir(parents=True)
    config = {
        "experiment": "mine", "seed": seed, "stages": ["ppo"], "run": {"dir": str(folder)},
        "algorithm": {"kl": {"coefficient": kl}, "iterations": 3},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").touch()
    if rate is not None:
        rows = {"sft": EvaluationRow(gold_mean=1.0), "ppo": EvaluationRow(gold_mean=2.0)}
        wins = (Preference("ppo", "sft", rate, rate - 0.1, rate + 0.1, 64),)
        write_summary(RunFolder(folder), Summary(models=rows, preferred=wins))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two seeds each of two KL coefficients, the eleventh job without a result."""
    for number, (seed, kl, rate) in enumerate(
        [(0, 0.0, 0.8), (1, 0.0, 0.6), (0, 0.1, 0.55), (1, 0.1, 0.65)]
    ):
        _job(tmp_path / "sweep", number, seed, kl, rate)
    _job(tmp_path / "sweep", 10, 2, 0.1, None)
    return tmp_path / "sweep"


def test_jobs_are_in_order_and_shown_by_the_keys_that_differ(root: Path) -> None:
    sweep = sweep_of([read_run(path) for path in find_runs(root)])
    assert sweep.keys == ("algorithm.kl.coefficient", "seed")
    assert sweep.figure == "PPO preferred to SFT"
    assert [(run.folder.path.name, values) for run, values, _ in sweep.jobs] == [
        ("0", ("0.0", "0")), ("1", ("0.0", "1")), ("2", ("0.1", "0")), ("3", ("0.1", "1")),
        ("10", ("0.1", "2")),
    ]  # fmt: skip
    assert [figure.value if figure else None for *_, figure in sweep.jobs] == [
        0.8, 0.6, 0.55, 0.65, None
    ]  # fmt: skip


def test_means_are_over_the_seeds_of_one_setting(root: Path) -> None:
    sweep = sweep_of([read_run(path) for path in find_runs(root)])
    # two values 0.2 apart: 12.706 * (0.2 / sqrt(2)) / sqrt(2) = 1.2706
    assert [(values, mean.jobs, mean.text()) for values, mean in sweep.groups] == [
        (("0.0",), 2, "0.700 [-0.571-1.971]"),
        (("0.1",), 2, "0.600 [-0.035-1.235]"),
    ]


def test_the_interval_is_students() -> None:
    # 1, 2, 3, 4: mean 2.5, deviation 1.29099, t(3) 3.182: half = 3.182 * 1.29099 / 2 = 2.054
    assert Spread.of([1.0, 2.0, 3.0, 4.0]).text() == "2.500 [0.446-4.554]"
    assert Spread.of([2.0] * 40).text() == "2.000 [2.000-2.000]"
    assert Spread.of([2.0]) == Spread(1, 2.0)  # one job says nothing about others


def test_the_table_is_printed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(root), "--sweep"]) == 0
    said = capsys.readouterr().out
    for text in ("PPO preferred to SFT", "0.800", "mean over seeds", "0.700"):
        assert text in said
    assert "algorithm.iterations" not in said


def test_one_run_is_no_sweep(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(root / "0"), "--sweep"]) == 2
    assert "several jobs" in capsys.readouterr().err


def test_runs_without_an_evaluation_have_what_was_measured() -> None:
    assert figure_of(Summary()) is None
    gold = figure_of(Summary(models={"sft": EvaluationRow(gold_mean=1.5)}))
    assert gold is not None
    assert (gold.name, gold.text()) == ("SFT gold score", "1.500")


@pytest.mark.parametrize(
    ("measured", "name", "value"),
    [
        ([("pretrain", "pretrain/loss", 9.0), ("sft", "sft/loss", 2.0),
          ("sft", "sft/validation_loss", 3.0)], "SFT held-out loss", 3.0),
        ([("sft", "sft/validation_loss", 3.0), ("mine", "ppo/score_mean", 0.25),
          ("mine", "ppo/score_mean", 0.5), ("mine", "ppo/policy_loss", 7.0)],
         "mine reward, last iteration", 0.5),
        ([("pretrain", "pretrain/loss", 9.0), ("pretrain", "pretrain/loss", 8.0)],
         "pretrain training loss, last step", 8.0),
        ([("pretrain", "pretrain/grad_norm", 9.0)], "", None),
    ],
)  # fmt: skip
def test_without_an_evaluation_the_last_stage_is_compared(
    tmp_path: Path, measured: list[tuple[str, str, float]], name: str, value: float | None
) -> None:
    _job(tmp_path / "sweep", 0, 0, 0.0, None)
    records = [MetricRecord.make(s, n, m, v) for n, (s, m, v) in enumerate(measured)]
    lines = "".join(record.to_line() + "\n" for record in records)
    (tmp_path / "sweep" / "0" / "metrics.jsonl").write_text(lines)
    sweep = sweep_of([read_run(tmp_path / "sweep" / "0")])
    assert sweep.figure == name
    assert [figure.value if figure else None for *_, figure in sweep.jobs] == [value]

"""`rehearsal compare`: keys, metrics and evaluations that differ."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from orchestrator.results.summary import EvaluationRow, Preference, Summary, write_summary
from orchestrator.run_files.folder import RunFolder
from orchestrator.runs.comparing import (
    difference_interval,
    different_keys,
    different_metrics,
    evaluation_rows,
    main,
)


def test_only_keys_that_differ_are_listed_and_absent_ones_are_told_from_null() -> None:
    a = {"seed": 0, "sft": {"epochs": 2, "dropout": None}, "stages": ["sft"], "run": {"dir": "x"}}
    b = {"seed": 0, "sft": {"epochs": 3}, "stages": ["sft"], "run": {"dir": "y"}, "new": False}
    assert list(different_keys(a, b)) == [
        ("sft.epochs", "2", "3"),
        ("sft.dropout", "null", "(none)"),
        ("new", "(none)", "false"),
    ]


def test_metrics_of_stages_that_both_runs_have() -> None:
    a = {("sft", "sft/loss"): 0.5, ("sft", "sft/old"): 1.0, ("ppo", "ppo/score"): 2.0}
    b = {("sft", "sft/loss"): 0.25, ("sft", "sft/new"): math.nan}
    assert different_metrics(a, b) == (
        0,
        [
            ("sft", "sft/loss", "0.5", "0.25", "-0.25"),
            ("sft", "sft/old", "1", "-", "-"),
            ("sft", "sft/new", "-", "nan", "-"),
        ],
    )


def test_equal_metrics_are_counted_nan_included_and_patterns_choose() -> None:
    a = {("ppo", "ppo/a"): math.nan, ("ppo", "ppo/b"): 1.0, ("ppo", "ppo/gold_mean"): 1.0}
    b = {("ppo", "ppo/a"): math.nan, ("ppo", "ppo/b"): 1.0, ("ppo", "ppo/gold_mean"): 1.5}
    assert different_metrics(a, b)[0] == 2
    assert different_metrics(a, b, ["ppo/gold*"]) == (
        0, [("ppo", "ppo/gold_mean", "1", "1.5", "+0.5")],
    )  # fmt: skip


def test_the_interval_of_a_difference_is_newcombes() -> None:
    # Newcombe (1998), table II, contrast (a): 56/70 and 48/80, method 10: 0.0524 to 0.3339.
    # The intervals of the two shares are Wilson's.
    better = Preference("ppo", "sft", 56 / 70, 0.6918, 0.8772, 70)
    worse = Preference("ppo", "sft", 48 / 80, 0.4904, 0.7005, 80)
    assert difference_interval(worse, better) == pytest.approx((0.0524, 0.3339), abs=2e-4)
    low, high = difference_interval(better, worse)
    assert (-high, -low) == pytest.approx((0.0524, 0.3339), abs=2e-4)


def _summary(rate: float, gold: float) -> Summary:
    models = {"sft": EvaluationRow(gold_mean=1.5), "ppo": EvaluationRow(gold_mean=gold)}
    return Summary(models=models, preferred=(Preference("ppo", "sft", rate, 0.6, 0.8, 100),))


def test_models_that_both_runs_evaluated_are_compared() -> None:
    other = _summary(0.75, 2.5)
    del other.models["sft"]
    assert list(evaluation_rows(_summary(0.7, 2.25), other)) == [
        ("PPO", "preferred to SFT", "70.0%", "75.0%", "+5.0% [-13.0% to +16.2%]"),
        ("PPO", "gold", "2.25", "2.5", "+0.25"),
    ]


def test_the_command_prints_all_three_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, epochs, rate in (("a", 1, 0.7), ("b", 2, 0.75)):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        config = {"experiment": "x", "stages": ["sft"], "sft": {"epochs": epochs}}
        folder.config.write_text(yaml.safe_dump(config))
        line = {"stage": "sft", "step": 1, "name": "sft/loss", "value": rate, "unit": "nats/token"}
        timing = line | {"name": "sft/tokens_per_second", "timing": True}
        folder.metrics.write_text(f"{json.dumps(line)}\n{json.dumps(timing)}\n")
        write_summary(folder, _summary(rate, 2.0))
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    words = " ".join(out.split())
    assert "sft.epochs 1 2" in words
    assert "0 end at the same value, 1 do not" in words
    assert "sft sft/loss 0.7 0.75 +0.05" in words
    assert "tokens_per_second" not in words
    assert "preferred to SFT 70.0% 75.0%" in words


def test_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), str(tmp_path)]) == 2
    assert "holds no config.yaml" in capsys.readouterr().err

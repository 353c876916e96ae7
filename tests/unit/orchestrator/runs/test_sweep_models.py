"""`rehearsal runs --sweep`: every model's figures over the seeds of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from orchestrator.results.summary import (
    EvaluationRow,
    FlagRate,
    Preference,
    Summary,
    TaskScore,
    Timing,
    write_summary,
)
from orchestrator.run_files.folder import RunFolder
from orchestrator.runs.listing import main
from orchestrator.telemetry.metrics import MetricRecord

PPO_GOLD = {(0, 0.1): 2.0, (1, 0.1): 3.0, (0, 0.2): 1.25, (1, 0.2): None}


def _job(root: Path, number: int, seed: int, kl: float) -> None:
    folder = root / str(number)
    folder.mkdir(parents=True)
    config = {"experiment": "mine", "seed": seed, "algorithm": {"kl": {"coefficient": kl}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    # the KL at the end is the mean of the last four iterations: 2 (seed 0), 3 (seed 1)
    kls = [9.0, 1.0 + seed, 3.0 + seed, 1.0 + seed, 3.0 + seed]
    records = [MetricRecord.make("ppo", n, "ppo/kl_sequence", kl) for n, kl in enumerate(kls)]
    (folder / "metrics.jsonl").write_text("".join(r.to_line() + "\n" for r in records))
    rows = {
        "sft": EvaluationRow(gold_mean=1.0 + seed, parameters=7),
        "ppo": EvaluationRow(
            gold_mean=PPO_GOLD[seed, kl], rude_rate=0.25,
            lm_eval={"arc": {"acc": TaskScore(0.5 + 0.25 * seed)}},
            flags={"harmful": FlagRate(0.125, 0.0, 0.5, 8)},
        ),
    }  # fmt: skip
    wins = (Preference("ppo", "sft", 0.75 - 0.25 * seed, 0.1, 0.9, 64),)
    timing = Timing(stages={"ppo": 10.0 + 2 * seed, "evaluate": 99.0})
    write_summary(RunFolder(folder), Summary(models=rows, preferred=wins, timing=timing))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two seeds each of two KL coefficients; one job has no gold score of PPO."""
    for number, (seed, kl) in enumerate(PPO_GOLD):
        _job(tmp_path / "sweep", number, seed, kl)
    return tmp_path / "sweep"


def test_json_is_a_table_of_means_over_seeds(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(root), "--sweep", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    table = pd.DataFrame(plain["models"])
    assert [*table.columns] == [
        "algorithm.kl.coefficient", "model", "figure", "jobs", "mean", "low", "high"
    ]  # fmt: skip
    first = table[(table["algorithm.kl.coefficient"] == "0.1") & (table["model"] == "ppo")]
    assert dict(zip(first["figure"], first["mean"], strict=True)) == {
        "gold score": 2.5, "rude": 0.25, "arc acc": 0.625, "flag harmful": 0.125,
        "preferred to SFT": 0.625, "KL at the end, nats": 2.5, "seconds of its stage": 11.0,
    }  # fmt: skip
    # 2 and 3: deviation .70711, t(1) = 12.706, half = 12.706 * .70711 / sqrt(2) = 6.353
    gold = first[first["figure"] == "gold score"].iloc[0]
    assert (gold["jobs"], gold["low"], gold["high"]) == pytest.approx((2, -3.853, 8.853), abs=1e-3)
    one = table[(table["algorithm.kl.coefficient"] == "0.2") & (table["figure"] == "gold score")]
    one = one[one["model"] == "ppo"].iloc[0]
    assert (one["jobs"], one["mean"]) == (1, 1.25)
    assert pd.isna(one["low"])
    sft = table[(table["model"] == "sft") & (table["figure"] == "parameters")]
    assert [*sft["mean"]] == [7.0, 7.0]
    jobs = pd.DataFrame(plain["jobs"])
    assert [*jobs["seed"]] == ["0", "1", "0", "1"]
    assert [*jobs["value"]] == [0.75, 0.5, 0.75, 0.5]
    assert set(jobs["figure"]) == {"PPO preferred to SFT"}


def test_the_table_has_a_row_per_setting_and_model(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main([str(root), "--sweep"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["0.1", "PPO", "2", "2.50", "[-3.85-8.85]", "0.625", "[-0.963-2.213]",
            "2.50", "[-3.85-8.85]"] in rows  # fmt: skip
    assert ["0.2", "SFT", "2", "1.50", "[-4.85-7.85]", "-", "-"] in rows


def test_a_sweep_without_an_evaluation_has_no_table_of_models(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for job in root.iterdir():
        (job / "summary.json").unlink()
    assert main([str(root), "--sweep", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["models"] == []
    assert len(plain["jobs"]) == 4
    assert main([str(root), "--sweep"]) == 0
    assert "model" not in capsys.readouterr().out

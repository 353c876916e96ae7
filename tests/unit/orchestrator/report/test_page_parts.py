"""What the page says besides tables: the run, its losses, a glossary, charts to point at."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import yaml

from orchestrator.report.build import write_report
from orchestrator.report.charts.bars import WIDTH, all_bars
from orchestrator.report.glossary import _OTHER, meaning
from orchestrator.report.heading import heading, state_of
from orchestrator.report.losses import loss_rows
from orchestrator.results.summary import EvaluationRow, Preference, Summary, Timing, write_summary
from orchestrator.run_files.damage import Damage
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.origin import Origin, commit_of, read_origin, write_origin
from orchestrator.run_files.samples import (
    Comparison,
    RolloutSample,
    append_rollouts,
    write_comparisons,
)
from orchestrator.telemetry.metrics import MetricRecord

WIN = Preference("ppo", "sft", 0.7, 0.6, 0.8, 64)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run").create()
    made.config.write_text(
        yaml.safe_dump(
            {"experiment": "mine", "seed": 5, "stages": ["sft"], "cluster": {"accelerator": "cpu"}}
        )
    )
    return made


def _record(folder: RunFolder, stage: str, **values: list[float]) -> None:
    with folder.metrics.open("a") as file:
        for name, numbers in values.items():
            for step, value in enumerate(numbers, start=1):
                file.write(MetricRecord.make(stage, step, f"{stage}/{name}", value).to_line())


def test_the_origin_of_a_run_is_read_back_and_heads_the_page(folder: RunFolder) -> None:
    words = ["rehearsal", "run", "+experiment=mine", "run.dir=a b"]
    write_origin(
        folder, words, {"python": "3.11.7", "torch": "2.13.0", "processor": "X"}, folder.path
    )
    origin = read_origin(folder, Damage())
    assert shlex.split(origin.command) == words
    assert origin.cores >= 1
    assert origin.commit == ""
    _record(folder, "sft", loss=[3.0, 2.0])
    text = unescape(write_report(folder).path.read_text())
    for shown in ("rehearsal run +experiment=mine 'run.dir=a b'", "Python 3.11.7, torch 2.13.0",
                  f"X, {origin.cores} cores", "models on cpu"):  # fmt: skip
        assert f"{shown}" in text
    assert "<dt>seed</dt><dd>5</dd>" in text


def test_a_damaged_or_missing_origin_leaves_the_rest(folder: RunFolder) -> None:
    _record(folder, "sft", loss=[3.0])
    assert write_report(folder).damage == []
    folder.origin.write_text('{"command": 5}')
    [note] = write_report(folder).damage
    assert "origin.json" in note


def test_the_commit_is_that_of_the_code_and_says_when_files_differ(tmp_path: Path) -> None:
    assert commit_of(tmp_path) == ""

    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=b", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    assert commit_of(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert commit_of(tmp_path) == git("rev-parse", "HEAD") + "+changes"


def test_the_state_is_told_by_the_files(folder: RunFolder) -> None:
    config = {"stages": ["sft", "ppo"]}
    half = Summary(timing=Timing(9.0, 1.0, {"sft": 3.0}))
    assert state_of(folder, config, half) == "stopped after sft, of sft, ppo"
    whole = Summary(timing=Timing(9.0, 1.0, {"sft": 3.0, "ppo": 4.0}))
    assert state_of(folder, config, whole) == "finished"
    folder.waiting.write_text("rank")
    assert state_of(folder, config, half).startswith("waits for people")
    folder.error_log.write_text("x")
    assert state_of(folder, config, whole).startswith("failed")


def test_unknown_facts_have_no_line() -> None:
    assert heading({}, Origin(), "finished") == [("state", "finished")]
    assert heading({"cluster": "odd"}, Origin(), "finished") == [("state", "finished")]


def test_an_sft_run_has_its_losses_as_results(folder: RunFolder) -> None:
    _record(folder, "sft", loss=[3.0] * 5 + [1.0] * 20, validation_loss=[2.5, 1.25])
    text = write_report(folder).path.read_text()
    row = "<td>sft</td><td>25</td><td>1.000</td><td>2.500</td><td>1.250</td><td>nats/token</td>"
    assert row in text
    assert text.index('id="results"') < text.index(row)


def test_losses_of_other_stages_and_of_none() -> None:
    records = [
        MetricRecord.make("reward_model", 1, "reward_model/loss", 0.7),
        MetricRecord.make("reward_model", 1, "reward_model/heldout_loss", float("nan")),
        MetricRecord.make("long", 2, "sft/loss", 1.5),
        MetricRecord.make("ppo", 1, "ppo/score_mean", 1.0),
    ]
    assert loss_rows(records) == [
        ["reward model", "1", "0.700", "-", "nan", "nats/pair"],
        ["long", "2", "1.500", "-", "-", "nats/token"],
    ]
    assert loss_rows([]) == []


def test_every_heading_and_fact_of_a_page_is_explained(folder: RunFolder) -> None:
    rows = {"sft": EvaluationRow(1.0, 2.5, 0.5, 0.1, 6.5), "ppo": EvaluationRow(2.0)}
    write_summary(folder, Summary(models=rows, preferred=(WIN,), timing=Timing(7.0, 2.0)))
    _record(folder, "sft", loss=[2.0])
    text = write_report(folder).path.read_text()
    explained = re.search(r'<dl class="glossary">(.*?)</dl>', text, re.DOTALL)
    assert explained is not None
    pairs = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", explained[1])
    names = {unescape(name) for name, _ in pairs}
    heads = {unescape(each) for each in re.findall(r"<th>(.*?)</th>", text)} - {""}
    facts = set(re.findall(r'<div class="card"><b>.*?</b><span>(.*?)</span>', text))
    assert heads
    assert facts
    assert heads | facts <= names
    assert {unescape(name) for name, said in pairs if unescape(said) == _OTHER} == set()
    assert meaning("hellaswag acc") == _OTHER


def test_line_ends_and_hidden_characters_of_texts_are_seen(folder: RunFolder) -> None:
    said = "one\n  two\u202ethree<|im_end|>\x1b"
    write_comparisons(folder, [Comparison(said, {"sft": said})])
    append_rollouts(folder, [RolloutSample("ppo", 1, 1, said, said, 0.5, 0.1, "stop", 0)])
    text = write_report(folder).path.read_text()
    shown = 'one\n  two<span class="mark">U+202E</span>three&lt;|im_end|&gt;'
    assert text.count(shown + '<span class="mark">U+001B</span>') == 2
    assert "white-space: pre-wrap" in text


def test_charts_hold_the_values_of_every_step(folder: RunFolder) -> None:
    _record(folder, "ppo", score_mean=[1.0, float("nan"), 2.5])
    text = write_report(folder).path.read_text()
    [readings] = [json.loads(unescape(r)) for r in re.findall(r'data-readings="(.*?)"', text)]
    [[label, points]] = readings
    assert label == "PPO"
    assert [(step, value) for _, step, value in points] == [("1", "1"), ("2", "nan"), ("3", "2.5")]
    assert sorted(points) == points


def test_bars_show_rates_in_their_intervals_and_seconds_by_length() -> None:
    timing = Timing(9.0, 1.0, {"sft": 1.0, "ppo": 4.0}, {"generate": 2.0, "reward": 0.0})
    summary = Summary(models={"sft": EvaluationRow()}, preferred=(WIN,), timing=timing)
    wins, stages, phases = all_bars(summary)
    [row] = wins.rows
    assert (row.low, row.dot, row.high, row.tick) == pytest.approx((60, 70, 80, 50))
    assert row.hover == "70.0 %, 95 % interval 60.0 to 80.0 %, 64 prompts"
    assert [(r.label, r.high, r.text) for r in stages.rows] == [
        ("SFT", WIDTH / 4, "1.00"), ("PPO", WIDTH, "4.00")
    ]  # fmt: skip
    assert [r.high for r in phases.rows] == [WIDTH, 0.0]
    broken = replace(summary, preferred=(replace(WIN, rate=float("nan"), high=9.0),))
    [row] = all_bars(broken)[0].rows
    assert (row.dot, row.high) == (0.0, WIDTH)
    assert all_bars(Summary()) == []

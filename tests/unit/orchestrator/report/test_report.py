import base64
import hashlib
import json
import re
import struct
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.config.run import LoggerConfig
from orchestrator.report.build import main, write_report
from orchestrator.report.charts import plots
from orchestrator.report.charts.curves import further, groups, running_mean, terms_of
from orchestrator.report.costs import cost_rows, time_rows
from orchestrator.report.page import Page as PageContent
from orchestrator.report.page import render_page
from orchestrator.report.tables import (
    facts,
    model_label,
    next_steps,
    render_result,
    render_table,
)
from orchestrator.results.reward_model_figures import (
    Agreement,
    Calibration,
    CalibrationBin,
    PairAccuracy,
    RewardModelFigures,
)
from orchestrator.results.summary import (
    EvaluationRow,
    Judging,
    LedgerTotals,
    Preference,
    Summary,
    TaskScore,
    Timing,
    WeightSyncTotals,
    read_summary,
    write_summary,
)
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.samples import (
    Comparison,
    RolloutSample,
    append_rollouts,
    read_rollouts,
    write_comparisons,
)
from orchestrator.telemetry.metrics import MetricRecord
from orchestrator.telemetry.recorder import Telemetry
from workers.data.tables.accounts import SetAccount
from workers.errors import DataError
from workers.records.processes import RoleInfo

EVIL = "</script><script>alert(1)</script> & <b>bold</b>"

SUMMARY = Summary(
    reward_model=RewardModelFigures(
        heldout=PairAccuracy(0.75, 0.7, 0.8, 1200, 300),
        by_source={"hh": PairAccuracy(0.8, 0.72, 0.85, 700, 200)},
        by_completions={2: PairAccuracy(0.7, 0.6, 0.8, 500, 100)},
        calibration=Calibration(
            0.03,
            (CalibrationBin(0.6, 0.62, 0.5, 0.7, 600), CalibrationBin(0.9, 0.85, 0.8, 0.9, 600)),
        ),
        agreement=Agreement(0.72, 0.7, 0.74, 0.45, 90, 30, 3),
    ),
    judging=Judging("endpoint", asked=7, cached=1, failed=2, order_dependent=3),
    models={
        "ppo": EvaluationRow(2.0, 3.0, 0.9, 0.0, 8.0),
        "base": EvaluationRow(gold_mean=-0.5, cloze_accuracy=0.25),
        "sft": EvaluationRow(
            1.0, 2.5, 0.5, 0.125, 6.5, lm_eval={"sums": {"acc": TaskScore(0.5, 0.1)}}
        ),
    },
    preferred=(
        Preference("ppo", "sft", 0.77, 0.72, 0.81, 100),
        Preference("sft", "base", 0.6, 0.5, 0.7, 100),
    ),
    ledger=LedgerTotals(10, 7, 3),
    drops={"late": 1, "down": 2},
    weight_sync=WeightSyncTotals(4, 0.5, 2e-6),
    timing=Timing(70.0, 9.0, {"sft": 3.0}, {"generate": 2.0}),
    roles=(RoleInfo("policy", 0, 42, "n1", "cpu"),),
    data=(
        SetAccount(
            "mine",
            "prompts",
            "p.jsonl",
            0.5,
            read=12,
            train=8,
            heldout=1,
            dropped={"repeated": 2, "prompt over <9> tokens": 1},
            tokens=1234,
        ),
    ),
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run").create()
    with Telemetry(folder, LoggerConfig(), {}) as telemetry:
        for step in range(1, 4):
            telemetry.record("ppo", step, {"ppo/score_mean": step, "ppo/kl_sequence": step / 2})
    return folder


def show(renderable: object, width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_summary_json_has_the_promised_keys_and_reads_back(folder: RunFolder) -> None:
    write_summary(folder, SUMMARY)
    data = json.loads(folder.summary.read_text())
    assert data["stages"]["reward_model"] == {
        "heldout_pair_accuracy": 0.75, "heldout_pair_accuracy_ci95": [0.7, 0.8],
        "heldout_pairs": 1200, "heldout_prompts": 300,
        "by_source": {"hh": {"accuracy": 0.8, "ci95": [0.72, 0.85], "pairs": 700, "prompts": 200}},
        "by_completions": {
            "2": {"accuracy": 0.7, "ci95": [0.6, 0.8], "pairs": 500, "prompts": 100}
        },
        "calibration": {"error": 0.03, "bins": [
            {"predicted": 0.6, "observed": 0.62, "ci95": [0.5, 0.7], "pairs": 600},
            {"predicted": 0.9, "observed": 0.85, "ci95": [0.8, 0.9], "pairs": 600},
        ]},
        "annotators": {
            "agreement": 0.72, "ci95": [0.7, 0.74], "alpha": 0.45, "judgements": 90, "prompts": 30,
            "annotators": 3,
        },
    }  # fmt: skip
    assert data["evaluation"]["judging"] == {
        "judge": "endpoint", "asked": 7, "cached": 1, "failed": 2, "order_dependent": 3,
    }  # fmt: skip
    assert data["evaluation"]["models"]["sft"]["lm_eval"] == {
        "sums": {"acc": {"value": 0.5, "stderr": 0.1}}
    }
    assert list(data["evaluation"]["models"]) == ["base", "sft", "ppo"]
    assert data["evaluation"]["models"]["base"] == {
        "gold_mean": -0.5, "web_perplexity": None, "truthful_rate": None, "rude_rate": None,
        "length_mean": None, "cloze_accuracy": 0.25,
    }  # fmt: skip
    assert data["evaluation"]["preferred"][0] == {
        "model": "ppo", "over": "sft", "rate": 0.77, "ci95": [0.72, 0.81], "n": 100,
    }  # fmt: skip
    assert data["ledger"] == {"generated": 10, "trained": 7, "dropped": 3}
    assert data["drops"] == {"late": 1, "down": 2}
    assert data["weight_sync"] == {
        "count": 4, "seconds_median": 0.5, "parity_max_abs_logprob_diff": 2e-6,
    }  # fmt: skip
    assert data["timing"] == {
        "total_seconds": 70.0, "first_optimizer_step_seconds": 9.0, "start": {},
        "stages": {"sft": 3.0}, "ppo_phases": {"generate": 2.0},
    }  # fmt: skip
    assert data["roles"][0] | {"device": "cpu"} == {
        "role": "policy", "rank": 0, "pid": 42, "node": "n1", "device": "cpu",
    }  # fmt: skip
    assert data["data"]["mine"] | {"path": "p.jsonl"} == {
        "kind": "prompts", "path": "p.jsonl", "weight": 0.5, "read": 12, "train": 8, "heldout": 1,
        "dropped": {"repeated": 2, "prompt over <9> tokens": 1}, "cut": 0, "tokens": 1234,
        "train_pairs": 0, "heldout_pairs": 0, "tied_pairs": 0,
    }  # fmt: skip
    assert read_summary(folder.summary) == SUMMARY


def test_the_page_shows_what_became_of_the_data() -> None:
    page = render_page(PageContent("run", SUMMARY, [], [], [], ""))
    row = page[page.index("<td>mine</td>") :].split("</tr>")[0]
    assert "<td>12</td><td>8</td><td>1</td><td>1,234</td>" in row
    assert "2 repeated<br>1 prompt over &lt;9&gt; tokens" in row


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text('{"stages": {}}')
    with pytest.raises(DataError) as caught:
        read_summary(path)
    assert caught.value.where == str(path)


def test_long_texts_are_cut_in_a_terminal_and_scores_are_beside_them() -> None:
    long = Comparison("q" * 700, {"rank 1": "a" * 600, "rank 2": "b" * 1700}, scores={"rank 1": 2})
    text = show(render_result(Summary(), [long]))
    assert [text.count(letter * 20) > 0 for letter in "qab"] == [True] * 3
    assert "... and 100 more characters" in text
    assert "... and 1,100 more characters" in text
    assert text.count("more characters") == 2
    assert re.search(r"rank 1\s+\+2.00\s+a", text)


def test_the_final_table_fits_eighty_columns(folder: RunFolder) -> None:
    text = show(render_result(SUMMARY, [Comparison("q ?", {"sft": "a", "ppo": ""})]))
    assert "77 % [72-81]" in text
    assert re.search(r"held-out prompts\s+base\s+SFT\s+PPO\s*\n", text)
    assert re.search(r"gold score\s+-0.50\s+1.00\s+2.00\s*\n", text)
    assert re.search(r"preferred to SFT\s+-\s+-\s+77 %", text)
    assert re.search(r"hh\s+80.0 %\s+\[72.0-85.0\]\s+700\s+200\s*\n", text)
    assert "75.0 % [70.0-80.0] of 1,200 pairs, 300 prompts" in text
    assert re.search(r"sums acc\s+-\s+0.5\s+-\s*\n", text)
    assert "correct" not in text  # nobody measured it
    assert "(empty)" in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text  # nothing was cut
    assert max(map(len, text.splitlines())) <= 80


class Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href") and v]


def test_the_page_is_self_contained_and_sampled_text_stays_text(folder: RunFolder) -> None:
    sample = RolloutSample("ppo", 1, 7, EVIL, EVIL, 0.5, 1.0, "stop", 0)
    append_rollouts(folder, [sample])
    append_rollouts(folder, [sample])
    assert read_rollouts(folder) == [sample, sample]
    write_comparisons(folder, [Comparison(EVIL, {"sft": EVIL}, {"sft": 1.0})])
    write_summary(folder, SUMMARY)
    folder.config.write_text("experiment: <pocket>\n")
    text = write_report(folder).path.read_text()
    page = Page(text)
    assert page.tags.count("script") == 3  # two blocks of data and the page's own code
    assert "b" not in page.tags[page.tags.index("article") :]
    assert all(link.startswith("#") for link in page.links)
    data = re.search(r'<script type="application/json" id="rollout-data">(.*?)</script>', text)
    assert data is not None
    assert json.loads(data[1])[0]["response"] == EVIL
    assert "experiment: &lt;pocket&gt;" in text
    rules = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert rules is not None
    assert rules.start() < text.index("<style>")  # rules hold for what comes after them
    allowed = dict(rule.split(" ", 1) for rule in rules[1].split("; "))
    assert allowed["default-src"] == allowed["base-uri"] == allowed["form-action"] == "'none'"
    assert allowed["img-src"] == "data:"
    for kind in ("style", "script"):  # nothing but these very texts
        own = re.search(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        assert own is not None
        digest = base64.b64encode(hashlib.sha256(own[1].encode()).digest()).decode()
        assert allowed[f"{kind}-src"] == f"'sha256-{digest}'"


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_tables_of_any_number_of_models_fit_eighty_columns(count: int) -> None:
    names = ["base", "sft", "ppo", "ppo_ptx", "large"][:count]
    row = EvaluationRow(
        -12.34, 1234.56, 1.0, 1.0, 123.4, 1.0, 1.0,
        {"a_task_with_quite_a_long_name_of_its_own": {"acc_norm": TaskScore(-1.234e-5)}},
    )  # fmt: skip
    preferred = [
        Preference(model, over, 1.0, 0.991, 1.0, 1024)
        for model in names for over in names if model != over
    ]  # fmt: skip
    summary = replace(SUMMARY, models=dict.fromkeys(names, row), preferred=tuple(preferred))
    text = show(render_table(summary))
    assert max(map(len, text.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert text.count("100 %") >= len(preferred)
    assert text.count("[99-100]") == len(preferred)
    assert text.count("-1.234e-05") == count
    labels = "".join(line.split()[0] for line in text.splitlines() if line.split())
    assert "a_task_with_quite_a_long_name_of_its_own" in labels
    for name in names:
        assert model_label(name) in text


def test_each_term_of_the_reward_has_a_panel() -> None:
    names = [f"ppo/reward/{term}" for term in ("answer", "style")]
    records = [MetricRecord.make("ppo", step, name, step) for name in names for step in range(3)]
    assert terms_of(record.name for record in records) == ["answer", "style"]
    figure = plots._PLOTS["terms.png"][1](records, Summary())
    assert figure is not None
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == [
        "Reward, term answer", "Reward, term style",
    ]  # fmt: skip
    assert plots._PLOTS["terms.png"][1](records[:0], Summary()) is None


def test_variants_have_curves_colours_and_columns_of_their_own(tmp_path: Path) -> None:
    names = ["ppo", "free", "rloo"]
    records = [
        MetricRecord.make(name, step, "ppo/score_mean", step) for name in names for step in range(3)
    ]
    rows = {name: EvaluationRow(web_perplexity=2.0) for name in ("base", "sft", "rloo", *names)}
    summary = Summary(
        models=rows,
        reward_models={"rm_long": RewardModelFigures(heldout=PairAccuracy(0.65, 0.6, 0.7, 90, 30))},
        timing=Timing(stages=dict.fromkeys(["rm_long", "ppo", "free", "rloo"], 1.0)),
    )
    others = further([*summary.timing.stages, *summary.models])
    _, curves = groups(others)["Reward and KL"][0]
    drawn = [curve for curve in curves if any(r.stage == curve[0] for r in records)]
    assert [(name, label) for name, _, label, _, _ in drawn] == [
        ("ppo", "PPO"), ("free", "free"), ("rloo", "rloo"),
    ]  # fmt: skip
    assert len({color for *_, color, _ in drawn}) == 3
    # the same colours where only the summary is known
    assert [plots._color(name, summary) for name in names] == [c for *_, c, _ in drawn]
    assert {"reward.png", "perplexity.png"} <= {*plots.draw_plots(tmp_path, records, summary)}
    assert summary.ordered_models() == ["base", "sft", "rloo", "ppo", "free"]
    assert ("rm_long, held-out pairs", "65.0 % [60.0-70.0] of 90 pairs, 30 prompts") in facts(
        summary
    )


def test_the_figures_of_several_reward_models_read_back(folder: RunFolder) -> None:
    more = {"rm_long": SUMMARY.reward_model, "rm_wide": RewardModelFigures()}
    write_summary(folder, replace(SUMMARY, reward_models=more))
    assert [*json.loads(folder.summary.read_text())["stages"]] == ["reward_model", *more]
    assert read_summary(folder.summary).reward_models == more
    write_summary(folder, SUMMARY)
    assert read_summary(folder.summary).reward_models == {}


def test_plots_without_data_are_not_drawn(folder: RunFolder) -> None:
    text = write_report(folder).path.read_text()  # a run that ended early: no summary, no samples
    assert [p.name for p in folder.plots.iterdir()] == ["reward.png"]
    width, height = struct.unpack(">II", (folder.plots / "reward.png").read_bytes()[16:24])
    assert width > height > 300
    drawn = re.findall(r'<figure class="chart">\n<figcaption>([^<]*)', text)
    assert drawn == ["Score of the reward ", "KL to the reference "]
    assert 'id="rollouts"' not in text


def test_a_folder_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing to report.*metrics\.jsonl: there is no"):
        write_report(RunFolder(tmp_path))


def test_running_mean_is_centred() -> None:
    assert running_mean([0.0, 3.0, 6.0, 9.0], 2) == [1.5, 3.0, 6.0, 7.5]
    assert running_mean([5.0, 7.0], 1) == [5.0, 7.0]


def test_the_time_of_roles_is_the_mean_over_steps_without_the_first() -> None:
    records = [
        MetricRecord.make("ppo", step, f"ppo/{kind}/policy", value)
        for step, values in ((1, (50.0, 50.0, 50.0)), (2, (1.0, 0.5, 2.5)), (3, (2.0, 0.5, 1.5)))
        for kind, value in zip(
            ("busy_seconds", "transfer_seconds", "waiting_seconds"), values, strict=True
        )
    ]
    assert time_rows(records) == [["policy", "1.500", "0.500", "2.000", "50%"]]
    page = render_page(
        PageContent("t", Summary(), charts=[], comparisons=[], rollouts=[], config="",
                    times=time_rows(records))
    )  # fmt: skip
    assert "Time of a PPO step" in page
    assert "<td>50%</td>" in page
    assert time_rows([]) == []


def test_the_cost_of_a_stage_is_its_time_last_kl_and_memory() -> None:
    kls = (9.0, 1.0, 1.5, 2.0, 2.5)  # of which the last four count
    records = [MetricRecord.make("rloo", n, "ppo/kl_sequence", kl) for n, kl in enumerate(kls)]
    summary = Summary(
        timing=Timing(stages={"sft": 65.0, "rloo": 30.0}),
        memory={"rloo": {"policy": 3 * 2**30, "rollout": 2**29}},
    )
    rows = cost_rows(summary, records)
    assert [row[2:] for row in rows] == [
        ["-", "-", "-"], ["1.75", "3.50 GiB", "policy 3.00, rollout 0.50"],
    ]  # fmt: skip
    assert (rows[0][:2], rows[1][0]) == (["SFT", "1:05"], "rloo")
    page = render_page(
        PageContent("t", summary, charts=[], comparisons=[], rollouts=[], config="", costs=rows)
    )
    assert "Cost of the stages" in page
    assert "<td>3.50 GiB</td>" in page


def _damaged(folder: RunFolder, name: str, text: str) -> list[str]:
    write_summary(folder, SUMMARY)
    (folder.path / name).write_text(text)
    return write_report(folder).damage


def test_a_damaged_line_is_named_and_the_others_are_shown(folder: RunFolder) -> None:
    lines = folder.metrics.read_text().splitlines()
    lines[1] = lines[1].replace("0.5", '"half"')
    notes = _damaged(folder, "metrics.jsonl", "\n".join(lines) + "\n")
    assert notes == [f"{folder.metrics}:2: value must be a number, not 'half'"]
    page = folder.report.read_text()
    assert "metrics.jsonl:2: value must be a number" in page
    assert 'aria-label="Score of the reward"' in page


def test_no_metrics_are_damage_unless_the_run_could_measure_none(folder: RunFolder) -> None:
    assert _damaged(folder, "metrics.jsonl", "") == [f"{folder.metrics}: it is empty"]
    write_summary(folder, replace(SUMMARY, timing=Timing(70.0, None, {"evaluate": 60.0})))
    assert write_report(folder).damage == []


def test_a_damaged_part_of_the_summary_is_named_and_the_others_are_shown(
    folder: RunFolder,
) -> None:
    write_summary(folder, SUMMARY)
    plain = json.loads(folder.summary.read_text())
    plain["evaluation"]["models"]["ppo"]["gold_mean"] = "<b>high</b>"
    del plain["ledger"]["trained"]
    notes = _damaged(folder, "summary.json", json.dumps(plain))
    assert [note.removeprefix(f"{folder.summary}: ") for note in notes] == [
        "evaluation/models cannot be used: gold_mean must be a number, not '<b>high</b>'",
        "ledger cannot be used: there is no 'trained'",
    ]
    page = folder.report.read_text()
    assert "&lt;b&gt;high&lt;/b&gt;" in page
    assert "<b>high</b>" not in page
    assert "75.0 % [70.0-80.0] of 1,200 pairs" in page


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("roles", {}, "it must be a list, not an object"),
        ("evaluation/preferred", {}, "it must be a list, not an object"),
        ("evaluation/preferred", "", "it must be a list, not ''"),
        ("stages/reward_model/calibration", {}, "there is no 'bins'"),
        ("stages/reward_model/calibration/bins", [], "calibration has no bins"),
        ("stages/reward_model/annotators", {}, "there is no 'alpha'"),
        ("data/mine/train", None, "train must be a whole number, not null"),
    ],
)
def test_an_empty_value_of_another_kind_is_no_missing_measurement(
    folder: RunFolder, place: str, value: object, says: str
) -> None:
    write_summary(folder, SUMMARY)
    plain = node = json.loads(folder.summary.read_text())
    *names, last = place.split("/")
    for name in names:
        node = node[name]
    node[last] = value
    (note,) = _damaged(folder, "summary.json", json.dumps(plain))
    assert f"cannot be used: {says}" in note


def test_a_count_that_is_gone_is_not_0(folder: RunFolder) -> None:
    write_summary(folder, SUMMARY)
    plain = json.loads(folder.summary.read_text())
    del plain["data"]["mine"]["train"]
    del plain["evaluation"]["models"]["sft"]["lm_eval"]["sums"]["acc"]["stderr"]
    assert _damaged(folder, "summary.json", json.dumps(plain)) == [
        f"{folder.summary}: evaluation/models cannot be used: there is no 'stderr'",
        f"{folder.summary}: data cannot be used: there is no 'train'",
    ]


def test_many_damaged_lines_are_counted(folder: RunFolder) -> None:
    notes = _damaged(folder, "metrics.jsonl", folder.metrics.read_text() + "{\n" * 40)
    assert len(notes) == 6
    assert notes[-1] == f"{folder.metrics}: 35 more like these"


def test_a_plot_of_absurd_figures_is_left_out_and_named(folder: RunFolder) -> None:
    absurd = [MetricRecord.make("ppo", n, "ppo/gold_mean", (-1) ** n * 1.7e308) for n in range(4)]
    more = "".join(record.to_line() for record in absurd)
    notes = _damaged(folder, "metrics.jsonl", folder.metrics.read_text() + more)
    assert [note.partition(": it cannot")[0] for note in notes] == [f"{folder.plots}/gold.png"]
    assert 'aria-label="Score of the reward"' in folder.report.read_text()


def test_a_report_that_is_made_leaves_words_of_the_damage_on_stderr(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.samples / "rollouts.jsonl").write_text("null\n")
    assert main([str(folder.path)]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith(f"damaged: {folder.samples}/rollouts.jsonl:1: ")
    assert f"report       {folder.report}\n" in printed.out


@pytest.mark.parametrize("name", ["x" * 5000, "nowhere", "metrics.jsonl"])
def test_what_is_no_run_folder_is_said(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main([str(folder.path / name)]) == 3
    assert capsys.readouterr().err.startswith("error: ")


def test_a_long_path_is_printed_whole_on_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    folder = RunFolder(tmp_path / "a rather long name" / ("n" * 90)).create()
    folder.metrics.write_text(MetricRecord.make("sft", 1, "sft/loss", 1.0).to_line())
    assert main([str(folder.path)]) == 0
    assert f"report       {folder.report}\n" in capsys.readouterr().out


def test_a_reward_that_failed_has_no_score_in_the_browser(folder: RunFolder) -> None:
    sample = RolloutSample("ppo", 1, 7, "a", "b", float("nan"), 1.0, "stop", 0)
    append_rollouts(folder, [sample])
    page = write_report(folder).path.read_text()
    assert '"score": null' in page
    assert "NaN" not in page


def test_the_summary_tells_of_lost_workers(folder: RunFolder) -> None:
    write_summary(folder, replace(SUMMARY, restarts=2, discarded_replies=5))
    plain = json.loads(folder.summary.read_text())
    assert (plain["restarts"], plain["discarded_replies"]) == (2, 5)
    assert read_summary(folder.summary).restarts == 2


def test_the_first_ppo_update_is_told_apart_from_the_first_step_of_the_run() -> None:
    timing = Timing(70.0, 9.0, start={"imports": 20.0, "first_iteration": 13.0})
    shown = dict(facts(replace(SUMMARY, timing=timing)))
    assert shown["first optimizer step after"] == "9.0 s"
    assert shown["first PPO update after"] == "33 s"
    unknown = replace(timing, start={"imports": 20.0})
    assert "first PPO update after" not in dict(facts(replace(SUMMARY, timing=unknown)))


def _model(folder: Path, architecture: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))


def test_a_run_without_an_evaluation_names_the_last_model_that_writes_text(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    summary = Summary(timing=Timing(stages={"pretrain": 1.0, "sft": 1.0, "reward_model": 1.0}))
    assert next_steps(folder, summary) == ""
    _model(folder.checkpoints / "reward_model", "LlamaForSequenceClassification")
    lines = [line.split("  ")[0] for line in next_steps(folder, summary).splitlines()]
    assert lines == ["", "score texts", "compare"]
    (folder.checkpoints / "sft").mkdir()  # not whole
    assert "serve it" not in next_steps(folder, summary)
    (folder.checkpoints / "sft").rmdir()
    _model(folder.checkpoints / "sft", "LlamaForCausalLM")
    assert f"orchestrator.serve {tmp_path}/checkpoints/sft\n" in next_steps(folder, summary)


def test_a_finished_run_names_what_can_be_done_with_its_last_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, summary = RunFolder(tmp_path), Summary(models={"sft": EvaluationRow()})
    assert next_steps(folder, summary) == ""
    _model(folder.checkpoints / "sft", "LlamaForCausalLM")
    summary.models["ppo"] = EvaluationRow()  # evaluated, but made by another run
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "orchestrator.run"])
    lines = next_steps(folder, summary).splitlines()
    assert f"serve it     python -m orchestrator.serve {tmp_path}/checkpoints/sft" in lines
    assert "talk to it   python -m orchestrator.chat, while it is served" in lines

"""People compare the answers of a run, and their verdicts become its win rates."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fakes.session import Run
from test_evaluate_stage import rates

from orchestrator.config.evaluation import JudgeKind
from orchestrator.label.command import main
from orchestrator.label.records import FLAGS, Rating, Verdict
from orchestrator.label.store import opened
from orchestrator.results.intervals import clustered_rate, preference
from orchestrator.results.summary import Judging, Summary, read_summary, write_summary
from orchestrator.stages.evaluate import evaluate
from orchestrator.stages.human_judge import read_verdicts
from workers.errors import DataError, DataLineError, EmptyDatasetError


def evaluated(folder: Path, verdicts: str = "", answers: Path | str = "") -> Run:
    run = Run(folder)
    run.config.evaluate.answers = str(answers)
    run.config.evaluate.judge = JudgeKind.human if verdicts else JudgeKind.none
    run.config.evaluate.verdicts = verdicts
    evaluate(run.session)
    return run


def compared(folder: Path, run: Run, people: int) -> Path:
    """Judge all answers: sft is better in every third prompt, equal in the next, worse in the last.

    The last person never says that answers are equal, but that sft is better.
    """
    project, out = folder / "ab.db", folder / "verdicts.jsonl"
    answers = run.folder.samples / "answers.jsonl"
    several = ("--overlap", "1", "--judgments", str(people)) if people > 1 else ()
    made = main(["make", str(project), str(answers), "--compare", "sft,base", *several])
    assert made == 0
    with opened(project) as store, store.transaction():
        for n in range(people):
            store.invite(f"p{n}", "labeler")
        for labeler in range(1, people + 1):
            for task in store.tasks():
                ranks = [(1, 2), (1, 1), (2, 1)][(task.id - 1) % 3]
                if labeler == people > 1 and ranks == (1, 1):
                    ranks = (1, 2)
                flags = dict.fromkeys(FLAGS, False) | {"satisfies_constraint": None}
                opinion = flags | {"opinion": (task.id - 1) % 4 == 0}
                verdict = Verdict(ranks, (Rating(6, opinion), Rating(2, flags)), 4)
                store.judge(task.id, labeler, verdict, (0, 1), 9.0)
    assert main(["export", str(project), str(out)]) == 0
    return out


def test_verdicts_of_one_person_are_win_rates_and_rates_of_fields(tmp_path: Path) -> None:
    first = evaluated(tmp_path / "first")
    assert first.session.findings.preferred == []
    verdicts = compared(tmp_path, first, 1)
    run = evaluated(tmp_path / "second", str(verdicts))
    outcomes = [(1, 0.5, 0)[i % 3] for i in range(32)]
    expected = preference(outcomes)
    (found,) = run.session.findings.preferred
    assert (found.model, found.over, found.n) == ("sft", "base", 32)
    assert (found.rate, found.low, found.high) == (expected.rate, expected.low, expected.high)
    assert run.session.findings.judging == Judging("human")
    row = run.session.findings.models["sft"]
    assert row.likert_mean == 6
    assert (row.flags["opinion"].rate, row.flags["opinion"].n) == (8 / 32, 32)
    assert "satisfies_constraint" not in row.flags
    assert run.session.findings.models["base"].likert_mean == 2
    write_summary(run.folder, Summary(models=run.session.findings.models))
    assert read_summary(run.folder.summary).models["sft"] == row


def test_answers_of_an_earlier_evaluation_are_judged_without_sampling(tmp_path: Path) -> None:
    first = evaluated(tmp_path / "first")
    answers = first.folder.samples / "answers.jsonl"
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    for row in rows:  # what another engine sampled
        row["answers"] = {model: f"{text} really" for model, text in row["answers"].items()}
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    verdicts = compared(tmp_path, first, 1)
    run = evaluated(tmp_path / "second", str(verdicts), answers)
    (found,) = run.session.findings.preferred
    assert found.rate == preference([(1, 0.5, 0)[i % 3] for i in range(32)]).rate
    assert not [name for name in run.hub.names() if name.startswith("rollout.")]
    assert (run.folder.samples / "answers.jsonl").read_text() == answers.read_text()
    row, old = (r.session.findings.models["sft"] for r in (run, first))
    assert (row.likert_mean, row.length_mean) == (6, None)
    assert (row.web_perplexity, row.cloze_accuracy) == (
        old.web_perplexity,
        old.cloze_accuracy,
    )


def test_answers_to_other_prompts_or_of_other_models_are_refused(tmp_path: Path) -> None:
    answers = evaluated(tmp_path / "first").folder.samples / "answers.jsonl"
    lines = answers.read_text().splitlines()
    wrong = tmp_path / "wrong.jsonl"
    row = json.loads(lines[4])
    for changed, says, line in [
        ([*lines[:4], json.dumps(row | {"prompt": "?"}), *lines[5:]], "the first is in line 5", ""),
        (lines[:-1], "31 lines, 32 prompts", ""),
        ([*lines[:4], json.dumps(row | {"answers": {"base": "a"}}), *lines[5:]],
         "no answer of sft", ":5"),
        ([*lines[:4], "{", *lines[5:]], "not what a run writes", ""),
    ]:  # fmt: skip
        wrong.write_text("".join(f"{each}\n" for each in changed))
        with pytest.raises(DataError, match=says) as caught:
            evaluated(tmp_path / says[:9], answers=wrong)
        assert caught.value.where.endswith(f"wrong.jsonl{line}")


def test_several_people_per_prompt_are_clustered(tmp_path: Path) -> None:
    verdicts = compared(tmp_path, evaluated(tmp_path / "first"), 3)
    run = evaluated(tmp_path / "second", str(verdicts))
    said = [(1, 1, 1), (0.5, 0.5, 1), (0, 0, 0)]
    outcomes = [x for i in range(32) for x in said[i % 3]]
    expected = clustered_rate(outcomes, [i for i in range(32) for _ in range(3)])
    (found,) = run.session.findings.preferred
    assert (found.rate, found.low, found.high) == (expected.rate, expected.low, expected.high)
    assert found.n == 32


def test_verdicts_on_other_answers_are_refused(tmp_path: Path) -> None:
    verdicts = compared(tmp_path, evaluated(tmp_path / "first"), 1)
    lines = verdicts.read_text().splitlines()
    row = json.loads(lines[4])
    row["completions"][1] += "!"
    verdicts.write_text("\n".join([*lines[:4], json.dumps(row), *lines[5:]]))
    with pytest.raises(DataError, match="answers that are not this run's") as caught:
        evaluated(tmp_path / "second", str(verdicts))
    assert caught.value.where.endswith("verdicts.jsonl:5")
    row["prompt"] = "something else"
    verdicts.write_text(json.dumps(row))
    with pytest.raises(DataError, match="a prompt that is not this run's"):
        evaluated(tmp_path / "third", str(verdicts))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"models": ["a", "a"]}, '"models", "completions" and "ranks" must have one entry'),
        ({"models": ["a"]}, '"models", "completions" and "ranks" must have one entry'),
        ({"models": None}, '"models" is missing'),
        ({"ranks": [0, 1]}, "ranks start at 1"),
        ({"flags": [1, 2]}, '"flags" must hold one object'),
        ({"likert": ["good", 1]}, '"likert" must be a whole number'),
    ],
)
def test_a_line_that_is_no_verdict_is_refused(tmp_path: Path, row: dict, says: str) -> None:
    good = {"prompt": "?", "models": ["a", "b"], "completions": ["x", "y"], "ranks": [1, 2]}
    path = tmp_path / "verdicts.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | row))
    with pytest.raises(DataLineError, match=re.escape(says)) as caught:
        read_verdicts(str(path))
    assert caught.value.where.endswith(":2")
    path.write_text("")
    with pytest.raises(EmptyDatasetError):
        read_verdicts(str(path))


def test_all_answers_are_kept(tmp_path: Path) -> None:
    run = evaluated(tmp_path)
    rows = [json.loads(x) for x in (run.folder.samples / "answers.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(32))
    assert all(list(row["answers"]) == ["base", "sft"] for row in rows)
    assert rates(run) == {}

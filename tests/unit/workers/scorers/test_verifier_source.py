"""Rewards by verifiers: what a worker scores, what the plan refuses, what it notes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing import composed

from orchestrator.config.schema import Config
from orchestrator.planning.checks.scoring import check_reward
from orchestrator.planning.worker_specs import reward_spec
from orchestrator.preflight.dry_run import CHECKS
from workers.data.records import Prompt
from workers.data.rows.asked import Asked
from workers.errors import DataError, RehearsalError
from workers.records.specs import RewardSpec
from workers.scorers.source import Batch, Scored, make_scorer
from workers.user_functions.reward_function import Exchange

NUMBER = ("reward.kind=verifier", "reward.settings.verifier=number",
          "reward.settings.column=answer", "data.keep_columns=[answer]")  # fmt: skip


def config(*overrides: str) -> Config:
    return composed("+experiment=pocket_tiny", *overrides)


def scored(run: Config, pairs: list[tuple[str, dict[str, Any]]]) -> Scored:
    spec: RewardSpec = reward_spec(run, "", "policy")
    scorer, needs = make_scorer(spec, spec.terms[0])
    assert needs.text
    texts = [
        Exchange(Asked(n, "?", "?", json.dumps(row)), response, finished=True)
        for n, (response, row) in enumerate(pairs)
    ]
    rollouts: Any = None
    return scorer(Batch(rollouts, texts))


def test_right_and_wrong_answers_and_rows_that_cannot_tell() -> None:
    run = config(*NUMBER, "reward.settings.right=2", "reward.settings.wrong=-0.5")
    rows = [("so 4", {"answer": "4"}), ("5", {"answer": "4"}), ("5", {"answer": "four"}), ("5", {})]
    found = scored(run, rows)
    np.testing.assert_array_equal(found.values, [2.0, -0.5, np.nan, np.nan])
    assert list(found.reasons) == [
        "", "", "verifier number: the answer in the prompt's row is no number",
        "verifier number: the prompt's row has no column 'answer'",
    ]  # fmt: skip


def test_texts_with_special_characters_arrive_as_they_are_typed() -> None:
    pattern = r"^(?:a|b)+\s{2,}[^,]=\$x$"
    run = config("reward.terms.form.kind=verifier", "reward.terms.form.verifier=regex",
                 f"reward.terms.form.pattern={pattern}")  # fmt: skip
    assert run.reward.terms["form"]["pattern"] == pattern


K = "reward.settings."


@pytest.mark.parametrize(
    ("overrides", "where", "said"),
    [
        (["reward.kind=verifier"], f"{K}verifier", "is not set"),
        (["reward.kind=verifier", f"{K}verifier=numbr"], f"{K}verifier", "mean number"),
        (["reward.kind=verifier", f"{K}verifier=number"], f"{K}column", "no column"),
        ([*NUMBER[:3]], "data.keep_columns", "which is not kept"),
        ([*NUMBER, f"{K}tolerance=2"], f"{K}tolerance", "relative"),
        ([*NUMBER, f"{K}pattern=("], f"{K}pattern", "regular expression"),
        ([*NUMBER, f"{K}schema=x.json"], f"{K}schema", "does not read schema"),
        ([*NUMBER, f"{K}right=inf"], f"{K}right", "inf"),
        (
            ["reward.kind=verifier", f"{K}verifier=json", f"{K}schema=none.json"],
            f"{K}schema=none.json",
            "cannot be read",
        ),
    ],
)
def test_what_a_verifier_cannot_use_is_refused_by_the_plan(
    overrides: list[str], where: str, said: str
) -> None:
    with pytest.raises(RehearsalError, match=said) as caught:
        check_reward(config(*overrides))
    assert caught.value.where == where


class Prompts:
    """A source that has prompts alone."""

    def __init__(self, *answers: str) -> None:
        self.rows = [json.dumps({"answer": answer}) for answer in answers]

    def prompts(self, split: str, start: int, count: int) -> list[Prompt]:
        return [Prompt(n, (), f"what {n}", n, row=row) for n, row in enumerate(self.rows)]


def test_answers_that_are_none_are_found_before_anything_starts() -> None:
    run, some, none = config(*NUMBER), Prompts("4", "none"), Prompts("none", "no")
    notes = [*CHECKS["answers"](run, some)]  # type: ignore[arg-type]
    assert len(notes) == 2, "of both splits"
    assert "1 of the first 2 prompts (ppo)" in notes[0]
    assert "'what 1'" in notes[0]
    with pytest.raises(DataError, match="no response to 2 of the first 2"):
        [*CHECKS["answers"](run, none)]  # type: ignore[arg-type]
    assert [*CHECKS["answers"](config(), none)] == []  # type: ignore[arg-type]


def test_a_verifier_of_ones_own_and_one_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_verifiers.py").write_text(
        "from workers.verifiers.verifier import Verifier\n"
        "def score(responses, rows):\n"
        "    both = zip(responses, rows)\n"
        "    return [None if a == '?' else float(a == r['answer']) for a, r in both]\n"
        "HERE = Verifier(lambda options: lambda text, answer: text[::-1] == answer)\n"
        "APART = Verifier(lambda options: None, apart='own_verifiers:score')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    given = [NUMBER[0], *NUMBER[2:], "reward.function_retries=0"]
    here = config(*given, "reward.settings.verifier=own_verifiers:HERE")
    found = scored(here, [("abc", {"answer": "cba"}), ("abc", {"answer": "abc"})])
    np.testing.assert_array_equal(found.values, [1.0, 0.0])
    apart = config(*given, "reward.settings.verifier=own_verifiers:APART")
    assert apart.reward.needs.seconds > 0
    found = scored(apart, [("a", {"answer": "a"}), ("b", {"answer": "a"}), ("?", {"answer": "a"})])
    np.testing.assert_array_equal(found.values, [1.0, 0.0, np.nan])
    assert "returned nothing" in found.reasons[2]
    sys.modules.pop("own_verifiers", None)

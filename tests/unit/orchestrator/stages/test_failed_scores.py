"""Answers of the final evaluation that a reward server could not score."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from composing import composed

from orchestrator.results.summary import EvaluationRow
from orchestrator.stages import judging
from workers.errors import RewardError
from workers.records.training import Scores

REMOTE = ("+experiment=pocket_tiny", "reward.kind=remote", "reward.settings.url=http://h/s")


def session(failed: int, *overrides: str) -> Any:
    """A session whose reward fails on the first answers."""
    values = np.arange(40, dtype=np.float32)
    values[:failed] = np.nan
    found = Scores(np.arange(40), values, tuple("down" if n < failed else "" for n in range(40)))
    done = SimpleNamespace(result=lambda: found)
    reward = SimpleNamespace(load=lambda spec: done, score_batch=lambda batch, asked: done)
    config = composed(*REMOTE, *overrides)
    return SimpleNamespace(
        config=config, fleet=SimpleNamespace(reward=reward), asked=lambda prompts: []
    )


def scored(run: Any) -> list[float]:
    found = judging.scores(run, "policy", [], None, None)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_a_few_answers_may_have_no_score_from_a_server() -> None:
    found = scored(session(2))
    assert [math.isnan(each) for each in found] == [True] * 2 + [False] * 38


@pytest.mark.parametrize(
    ("failed", "overrides"),
    [
        (3, ()),  # more than evaluate.endpoint.failed_fraction
        (40, ("evaluate.endpoint.failed_fraction=1",)),  # none is left
        (1, ("reward.kind=function", "reward.function=a:b")),
    ],
)
def test_more_end_the_run_and_so_does_one_of_a_function(
    failed: int, overrides: tuple[str, ...]
) -> None:
    run = session(failed)
    for each in overrides:
        key, _, value = each.partition("=")
        if key == "evaluate.endpoint.failed_fraction":
            run.config.evaluate.endpoint.failed_fraction = float(value)
        elif key == "reward.kind":
            run.config.reward.kind, run.config.reward.settings = value, {}
        elif key == "reward.function":
            run.config.reward.function = value
    with pytest.raises(RewardError, match=f"{failed} of 40 responses"):
        scored(run)


def test_pairs_without_a_score_are_left_out_and_counted() -> None:
    texts = ["a"] * 3
    answers = {
        "sft": judging.Answers(texts, None, [0.0, math.nan, 1.0], EvaluationRow()),
        "ppo": judging.Answers(texts, None, [1.0, 5.0, 3.0], EvaluationRow()),
    }
    run = SimpleNamespace(config=composed(*REMOTE))
    (rate,), judged = judging._by_scores(run, answers, [("ppo", "sft")])  # type: ignore[arg-type]
    assert rate is not None
    assert (rate.rate, rate.n) == (1.0, 2)
    assert (judged.judge, judged.failed) == ("reward_remote", 1)

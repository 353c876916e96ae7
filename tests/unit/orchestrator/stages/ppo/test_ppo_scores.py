"""What a response that was cut loses, by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orchestrator.config.ranges import check_tree
from orchestrator.config.reward import RewardConfig
from orchestrator.config.schema import Config
from orchestrator.config.training import AlgorithmConfig, OverlongConfig
from orchestrator.stages.ppo.ledger import Ledger
from orchestrator.stages.ppo.scores import Scoring, deduct_cut, deviation_of, long_penalties
from workers.errors import ConfigError
from workers.records.generation import Finish
from workers.records.training import Scores

FINISH = np.array([Finish.STOP, Finish.LENGTH, Finish.STOP, Finish.LENGTH, Finish.LENGTH])

LENGTHS = np.array([3, 16, 12, 16, 16])


def scores(*values: float) -> Scores:
    failures = tuple("no answer" if np.isnan(value) else "" for value in values)
    return Scores(np.arange(len(values)), np.array(values, np.float32), failures)


def scoring(kind: str, penalty: float | None, own: float = 0.0) -> Scoring:
    algorithm = AlgorithmConfig(missing_eos_penalty=penalty)
    reward = RewardConfig(kind=kind, function="a:b", function_missing_eos_penalty=own)
    return Scoring(Config(algorithm=algorithm, reward=reward), Ledger())


def test_a_cut_response_loses_whatever_its_score_is_and_never_gains() -> None:
    given = scores(2.0, 2.0, -5.0, -5.0, np.nan)
    lower = deduct_cut(given, FINISH, 1.5)
    np.testing.assert_array_equal(lower.values, np.float32([2.0, 0.5, -5.0, -6.5, np.nan]))
    assert lower.values.dtype == np.float32
    assert lower.failures == given.failures


@pytest.mark.parametrize("penalty", [3e38, 1e300])
def test_a_reward_stays_finite_however_much_is_deducted(penalty: float) -> None:
    lowest = float(np.finfo(np.float32).min)
    lower = deduct_cut(scores(-1e38, -1e38, 2.0, lowest, np.nan), FINISH, penalty).values
    np.testing.assert_array_equal(lower, np.float32([-1e38, lowest, 2.0, lowest, np.nan]))


def test_the_deviation_is_that_of_the_scores_that_there_are() -> None:
    assert deviation_of(scores(1.0, 3.0, np.nan, 1.0, 3.0)) == 1.0
    assert deviation_of(scores(2.0, 2.0, np.nan)) is None
    assert deviation_of(scores(np.nan)) is None


def test_a_reward_model_is_measured_once() -> None:
    found = scoring("model", 0.5)
    first = found.shape(scores(1.0, 3.0, 1.0, 3.0, np.nan), FINISH, LENGTHS)
    assert first.values[:4].tolist() == [1.0, 2.5, 1.0, 2.5]
    second = found.shape(scores(0.0, 100.0, 0.0, -100.0, 8.0), FINISH, LENGTHS)
    assert second.values.tolist() == [0.0, 99.5, 0.0, -100.5, 7.5]
    assert found.state() == {"deviation": 1.0, "lost": 0}


@pytest.mark.parametrize("model_penalty", [None, 1.0])
def test_a_function_keeps_its_own_number_unless_a_penalty_in_its_units_is_asked(
    model_penalty: float | None,
) -> None:
    given = scores(1.0, 0.0, 1.0, 1.0, 0.0)
    plain = scoring("function", model_penalty).shape(given, FINISH, LENGTHS)
    assert plain.values.tolist() == [1.0, 0.0, 1.0, 1.0, 0.0]
    asked = scoring("function", model_penalty, own=0.25).shape(given, FINISH, LENGTHS)
    assert asked.values.tolist() == [1.0, -0.25, 1.0, 0.75, -0.25]


def test_without_a_setting_or_a_deviation_nothing_is_deducted() -> None:
    for penalty, deviation, lost in ((1.5, 4.0, 6.0), (None, 4.0, 0.0), (1.5, None, 0.0)):
        known = scoring("model", penalty)
        known.deviation = deviation
        assert known.penalty() == lost


@pytest.mark.parametrize(
    ("fact", "deviation"),
    [(0.25, 0.25), (4.0, 4.0), (0.0, None), (-1.0, None), (float("inf"), None), ("wide", None)],
)
def test_the_deviation_of_a_reward_model_is_in_its_folder(
    monkeypatch: pytest.MonkeyPatch, fact: object, deviation: float | None
) -> None:
    monkeypatch.setattr(
        "orchestrator.stages.ppo.scores.model_folder.facts",
        lambda path: {"score_deviation": fact} if path == Path("FOLDER") else {},
    )
    ledger = Ledger()
    found = Scoring.of(Config(), ledger, "FOLDER")
    assert (found.deviation, found.ledger is ledger) == (deviation, True)
    assert Scoring.of(Config(), ledger, "").deviation is None


def test_each_reason_is_told_once_with_the_number_of_its_responses() -> None:
    notes: list[str] = []
    session: Any = SimpleNamespace(live=SimpleNamespace(note=notes.append), position="here")
    known, ids = scoring("model", None), np.array([9, 4, 6, 5])
    known.ledger.generated(ids)
    values = np.full(4, np.nan, np.float32)
    reasons = ("down", "", "late", "down")
    given = Scores(ids, values, reasons, ("no route", "", "", "other"))
    assert known.keep(session, given).tolist() == [4]
    assert notes == [
        "2 of 4 responses dropped: down: no route", "1 of 4 responses dropped: late",
    ]  # fmt: skip
    known.ledger.generated([12, 11])
    again = Scores(np.array([12, 11]), values[:2], ("late", ""))
    assert known.keep(session, again).tolist() == [11]
    assert len(notes) == 2
    known.ledger.generated([13])
    known.keep(session, Scores(np.array([13]), values[:1], ("late",)))
    assert notes[2:] == ["no response of this step has a reward: no weight changes"]
    known.ledger.trained([4, 11])
    assert known.ledger.check(0).dropped == {"down": 2, "late": 3}


def test_no_penalty_is_no_change() -> None:
    given = scores(1.0, 0.0, 1.0, 1.0, 0.0)
    assert scoring("model", None).shape(given, FINISH, LENGTHS) is given


def test_a_bonus_for_being_cut_is_refused() -> None:
    check_tree(Config(algorithm=AlgorithmConfig(missing_eos_penalty=None)))
    with pytest.raises(ConfigError, match=r"algorithm\.missing_eos_penalty=-1"):
        check_tree(Config(algorithm=AlgorithmConfig(missing_eos_penalty=-1.0)))
    with pytest.raises(ConfigError, match=r"reward\.function_missing_eos_penalty=-1"):
        check_tree(Config(reward=RewardConfig(function_missing_eos_penalty=-1.0)))


def test_responses_close_to_the_limit_lose_in_proportion() -> None:
    lengths = np.array([1, 8, 9, 10, 12, 12])
    overlong = OverlongConfig(buffer_tokens=4, penalty=2.0)
    penalties = long_penalties(lengths, 12, overlong)
    assert penalties.tolist() == [0.0, 0.0, 0.5, 1.0, 2.0, 2.0]


def test_the_penalty_for_length_replaces_that_for_the_cut() -> None:
    found = scoring("model", 1.0)
    found.config.rollout.max_response_tokens = 16
    found.config.algorithm.overlong = OverlongConfig(buffer_tokens=8, penalty=0.5)
    shaped = found.shape(scores(1.0, 3.0, 1.0, 3.0, np.nan), FINISH, LENGTHS)
    assert shaped.values[:4].tolist() == [1.0, 2.5, 0.75, 2.5]

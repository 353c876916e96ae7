"""Margins of the reward model's loss: by ranks, by ratings, and where they come from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from composing import composed
from fakes.session import Run, small_config

from orchestrator.batching.margins import likert_levels, rank_levels, with_margins
from orchestrator.config.training import Margin
from orchestrator.planning.plan import make_plan, render_plan
from orchestrator.stages.reward_model import reward_model
from workers.data.formats.line import Line
from workers.data.recognise.rankings_by_fields import comparisons
from workers.errors import ConfigError, DataError, DataLineError
from workers.records.arrays import Ragged
from workers.records.training import Ranking


def margins(levels: np.ndarray, ranks: list[int]) -> dict[tuple[int, int], float]:
    """The margin of each pair as the loss has it."""
    return {
        (i, j): round(float(np.clip(levels[i] - levels[j], 0, 1)), 6)
        for i in range(len(ranks))
        for j in range(len(ranks))
        if ranks[i] < ranks[j]
    }


def ranking(ranks: list[int], likert: list[int] | None = None, source: str = "") -> Ranking:
    rows = Ragged.from_rows([[1, 2]] * len(ranks), np.int32)
    rated = None if likert is None else np.array(likert)
    return Ranking(0, rows, np.array(ranks), source=source, likert=rated)


def test_margins_by_ranks_are_distances_over_all_completions() -> None:
    assert margins(rank_levels(np.array([1, 2])), [1, 2]) == {(0, 1): 1.0}
    assert margins(rank_levels(np.array([1, 2, 3])), [1, 2, 3]) == {
        (0, 1): 0.5, (0, 2): 1.0, (1, 2): 0.5,
    }  # fmt: skip
    # a tie leaves one distance of two steps
    assert margins(rank_levels(np.array([2, 1, 2])), [2, 1, 2]) == {(1, 0): 0.5, (1, 2): 0.5}
    # gaps do not count
    assert rank_levels(np.array([1, 5, 9])).tolist() == rank_levels(np.array([1, 2, 3])).tolist()


def test_margins_by_ratings_are_those_of_the_paper() -> None:
    ratings, ranks = [7, 4, 5, 6, 7], [1, 5, 4, 3, 1]
    found = margins(likert_levels(np.array(ratings)), ranks)
    assert found[0, 1] == 1.0  # 3 apart: significantly better
    assert found[0, 2] == pytest.approx(2 / 3, abs=1e-6)
    assert found[0, 3] == pytest.approx(1 / 3, abs=1e-6)
    assert margins(likert_levels(np.array([4, 4])), [1, 2]) == {(0, 1): 0.0}
    assert margins(likert_levels(np.array([7, 1])), [1, 2]) == {(0, 1): 1.0}  # no more than 1
    assert margins(likert_levels(np.array([2, 6])), [1, 2]) == {(0, 1): 0.0}  # contradicts


def test_rankings_without_ratings_are_refused_by_name() -> None:
    given = [ranking([1, 2], [7, 3]), ranking([1, 2], source="mine")]
    with pytest.raises(DataError, match=r"1 of 2 rankings have no column likert.*mine") as caught:
        with_margins(given, Margin.likert)
    assert caught.value.where == "reward_model.margin"
    assert with_margins(given, Margin.none) == given
    assert all(each.levels is not None for each in with_margins(given, Margin.ranks))
    assert given[0].levels is None


def comparison(**more: object):
    fields = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 1, None]} | more
    (found,) = comparisons(Line(json.loads(json.dumps(fields)), "f:1"), "set")
    return found


def test_ratings_are_read_beside_the_ranks_and_left_out_with_them() -> None:
    assert comparison(likert=[3, 7, 5]).likert == (3, 7)
    assert comparison().likert == ()
    assert comparison(likert=None).likert == ()


@pytest.mark.parametrize("wrong", [[3, 7], [0, 7, 5], [3, 8, 5], [3, 7.5, 5], [True, 7, 5], "x", 3])
def test_ratings_out_of_range_are_bad_lines(wrong: object) -> None:
    with pytest.raises(DataLineError, match="likert"):
        comparison(likert=wrong)


def test_the_stage_trains_with_margins_and_measures_without(tmp_path: Path) -> None:
    config = small_config()
    config.reward_model.margin = Margin.ranks
    run = Run(tmp_path / "a", config)
    reward_model(run.session)
    (heldout,) = run.hub.facts("critic.evaluate_rankings")
    measured = [r for s in heldout["steps"] for b in s.micro_batches for r in b]
    assert measured
    assert all(r.levels is None for r in measured)
    plain = Run(tmp_path / "b")
    reward_model(plain.session)
    # The head starts at zero or near it, so a margin costs more than none.
    assert run.series("reward_model/loss")[0] > plain.series("reward_model/loss")[0]


def test_the_pocket_world_has_no_ratings() -> None:
    with pytest.raises(ConfigError, match="rates none"):
        make_plan(composed("+experiment=pocket", "reward_model.margin=likert"))
    plan = render_plan(make_plan(composed("+experiment=pocket", "reward_model.margin=ranks")))
    assert "has a margin, by ranks" in plan

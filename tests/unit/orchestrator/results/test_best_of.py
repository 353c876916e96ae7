"""The estimate of the best of n from N samples, against subsets and by hand."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from orchestrator.report.tables import evaluation_columns, render_table
from orchestrator.results.best_of import best_of_weights, kl_bound, name_of, parts_of
from orchestrator.results.summary import EvaluationRow, Preference, Summary, model_label


def weights(rewards: list[float], n: int) -> list[float]:
    return best_of_weights(np.array(rewards), n).tolist()


def test_weights_by_hand() -> None:
    assert weights([5.0], 1) == [1.0]
    assert weights([1.0, 3.0, 2.0], 1) == pytest.approx([1 / 3] * 3)
    # pairs of {1, 3, 2}: 3, 2 and 3 win
    assert weights([1.0, 3.0, 2.0], 2) == pytest.approx([0, 2 / 3, 1 / 3])
    assert weights([1.0, 3.0, 2.0], 3) == [0, 1, 0]
    assert weights([4.0, 1.0, 2.0, 3.0], 2) == pytest.approx([3 / 6, 0, 1 / 6, 2 / 6])
    # of equal rewards the first is the better
    assert weights([2.0, 2.0], 2) == [1, 0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=7), st.data())
def test_weights_are_those_of_all_subsets(rewards: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(rewards)))
    won = [0] * len(rewards)
    for subset in itertools.combinations(range(len(rewards)), n):
        won[max(subset, key=lambda i: (rewards[i], -i))] += 1
    expected = [w / math.comb(len(rewards), n) for w in won]
    assert weights([float(r) for r in rewards], n) == pytest.approx(expected, abs=1e-12)


def test_the_estimate_is_unbiased() -> None:
    # Scores are uniform in 0 .. 1, whose best of n is n / (n + 1) on average.
    rng = np.random.default_rng(0)
    draws = rng.random((4000, 16))
    for n in (1, 4, 16):
        found = np.array([best_of_weights(row, n) @ row for row in draws])
        error = found.std() / math.sqrt(len(found))
        assert found.mean() == pytest.approx(n / (n + 1), abs=4 * error)
    # From 16 samples the best of 4 is known better than from 4.
    few = draws[:, :4].max(1)
    many = np.array([best_of_weights(row, 4) @ row for row in draws])
    assert many.std() < 0.7 * few.std()


def test_many_samples_keep_the_sum_of_one() -> None:
    for n in (1, 7, 2048, 4096):
        found = best_of_weights(np.arange(4096.0), n)
        assert found.sum() == pytest.approx(1.0, rel=1e-9)
        assert (found >= 0).all()


def test_the_bound_of_the_kl() -> None:
    assert kl_bound(1) == 0
    assert kl_bound(2) == pytest.approx(0.1931472, abs=1e-6)  # log 2 - 1/2
    assert kl_bound(64) == pytest.approx(3.1745081, abs=1e-6)


def test_names_and_their_order() -> None:
    assert (name_of("sft", 16), parts_of("sft@16"), parts_of("sft")) == (
        "sft@16", ("sft", 16), ("sft", 0),
    )  # fmt: skip
    rows = dict.fromkeys(("ppo", "sft@16", "sft@4", "sft", "base"), EvaluationRow())
    assert Summary(models=rows).ordered_models() == ["base", "sft", "sft@4", "sft@16", "ppo"]
    rows |= {"other": EvaluationRow()}  # models of variants are in the order of the run
    ordered = Summary(models=rows).ordered_models()
    assert ordered == ["ppo", "sft", "sft@4", "sft@16", "base", "other"]
    assert model_label("sft@4") == "SFT, best of 4"
    assert [model_label(name) for name in ("sft", "other", "a@b")] == ["SFT", "other", "a@b"]


def test_the_best_of_n_have_a_table_of_their_own_within_80_columns() -> None:
    row = EvaluationRow(1.23, 2.5, 0.9, 0.1, 6.7, reward_mean=0.5, kl_bound=0.64)
    names = ("base", "sft", "ppo", "ppo_ptx", "rejection_sampling", "sft@4", "sft@16", "sft@256")
    over = tuple(Preference(n, "sft", 0.71, 0.69, 0.73, 99) for n in names if n != "sft")
    summary = Summary(models=dict.fromkeys(names, row), preferred=over)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_table(summary))
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    heads = [line.split() for line in lines if "held-out prompts" in line]
    assert heads[0][2:] == ["base", "SFT", "PPO", "PPO-ptx", "rejection"]
    assert heads[1][2:] == ["best", "of", "4", "best", "of", "16", "best", "of", "256"]
    assert evaluation_columns(summary)[0] == ("gold score", ["1.23"] * 8)

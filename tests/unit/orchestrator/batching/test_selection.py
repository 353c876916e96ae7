"""The choice among scored samples, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.batching.selection import above_threshold, best_of_prompts, best_scores


def chosen(prompts: list[int], scores: list[float], ids: list[int]) -> list[int]:
    flags = best_of_prompts(np.array(prompts), np.array(scores, np.float32), np.array(ids))
    return [i for i, flag in zip(ids, flags.tolist(), strict=True) if flag]


@pytest.mark.parametrize(
    ("prompts", "scores", "ids", "best"),
    [
        ([7, 7, 7], [0.5, 2.0, 1.0], [10, 11, 12], [11]),
        ([7, 3, 7, 3], [0.5, -2.0, 1.0, -1.0], [10, 11, 12, 13], [12, 13]),
        ([7, 7, 7], [1.0, 1.0, 1.0], [12, 10, 11], [10]),  # ties: the lowest id
        ([7, 7, 3], [-5.0, -4.0, -9.0], [10, 11, 12], [11, 12]),
        ([7], [-1e30], [4], [4]),
        ([], [], [], []),
    ],
)
def test_the_best_of_each_prompt(
    prompts: list[int], scores: list[float], ids: list[int], best: list[int]
) -> None:
    assert chosen(prompts, scores, ids) == best


def test_what_exceeds_the_threshold() -> None:
    scores = np.array([0.5, 0.25, -1.0, 0.75], np.float32)
    assert above_threshold(scores, 0.25).tolist() == [True, False, False, True]


def test_the_highest_score_of_each_prompt() -> None:
    found = best_scores(np.array([7, 3, 7]), np.array([1.0, -2.0, 4.0], np.float32))
    assert found.tolist() == [-2.0, 4.0]
    assert len(best_scores(np.zeros(0, np.int64), np.zeros(0, np.float32))) == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2)), max_size=20), st.randoms())
def test_each_prompt_has_one_and_the_order_does_not_count(rows: list, random) -> None:
    samples = [(p, float(s), i) for i, (p, s) in enumerate(rows)]
    expected: dict[int, tuple[float, int]] = {}
    for prompt, score, i in samples:  # another way to find it: one after the other
        if prompt not in expected or score > expected[prompt][0]:
            expected[prompt] = (score, i)
    random.shuffle(samples)
    columns = [list(column) for column in zip(*samples, strict=True)] or [[], [], []]
    assert sorted(chosen(*columns)) == sorted(i for _, i in expected.values())

import numpy as np
import pytest
import torch

from workers.messages import Ragged
from workers.padding import (
    last_token_values,
    pad_rows,
    response_predictions,
    target_predictions,
    token_budget_batches,
)


def ragged(rows, dtype=np.int32) -> Ragged:
    return Ragged.from_rows(rows, dtype)


def test_rows_are_padded_on_the_right() -> None:
    rows = pad_rows(ragged([[5, 6, 7], [8], [9, 4]]))
    assert rows.input_ids.tolist() == [[5, 6, 7], [8, 0, 0], [9, 4, 0]]
    assert rows.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert rows.position_ids.tolist() == [[0, 1, 2]] * 3
    assert rows.labels.tolist() == [[6, 7], [0, 0], [4, 0]]


def test_a_response_token_belongs_to_the_position_before_it() -> None:
    rows = pad_rows(ragged([[5, 6, 7, 8], [9, 4]]))
    mask = response_predictions(rows, np.array([2, 1]))
    assert mask.tolist() == [[False, True, True], [True, False, False]]
    assert rows.labels[mask].tolist() == [7, 8, 4]


def test_the_first_token_is_never_a_target() -> None:
    rows = pad_rows(ragged([[5, 6, 7], [8, 9]]))
    mask = target_predictions(rows, ragged([[True, False, True], [True, True]], bool))
    assert rows.labels[mask].tolist() == [7, 9]


@pytest.mark.parametrize("rows", [[], [[]]])
def test_a_batch_without_work_still_makes_a_prediction_that_counts_for_nothing(rows) -> None:
    padded = pad_rows(ragged(rows))
    assert padded.input_ids.shape == (1, 2)
    assert not response_predictions(padded, np.ones(len(rows), np.int64)).any()
    assert not target_predictions(padded, ragged(rows, bool)).any()


def test_the_last_token_of_each_row_speaks_for_it() -> None:
    grid = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert last_token_values(grid, torch.tensor([3, 1])).tolist() == [3.0, 4.0]


def test_batches_stay_within_the_budget_and_hold_every_row_once() -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 200)
    batches = token_budget_batches(lengths, 64)
    assert sorted(np.concatenate(batches)) == list(range(200))
    assert all(len(b) * lengths[b].max() <= 64 for b in batches)


def test_a_row_over_the_budget_is_alone() -> None:
    batches = token_budget_batches(np.array([3, 100, 2]), 10)
    assert [b.tolist() for b in batches] == [[2, 0], [1]]
    assert token_budget_batches(np.zeros(0, np.int64), 10) == []

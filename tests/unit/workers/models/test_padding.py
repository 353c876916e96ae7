import numpy as np
import pytest

from workers.models.padding import last_cells, pack_rows, pad_rows, response_cells, target_cells
from workers.models.row_packing import first_fit, token_budget_batches
from workers.records.arrays import Ragged


def ragged(rows, dtype=np.int32) -> Ragged:
    return Ragged.from_rows(rows, dtype)


def test_rows_are_padded_on_the_right() -> None:
    rows = pad_rows(ragged([[5, 6, 7], [8], [9, 4]]))
    assert rows.input_ids.tolist() == [[5, 6, 7], [8, 0, 0], [9, 4, 0]]
    assert rows.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert rows.position_ids.tolist() == [[0, 1, 2]] * 3


def test_rows_are_packed_end_to_end() -> None:
    rows = pack_rows(ragged([[5, 6, 7], [8], [], [9, 4]]))
    assert rows.input_ids.tolist() == [[5, 6, 7, 8, 9, 4]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert rows.attention_mask.flatten().tolist() == [3, 1, 2]
    assert last_cells(rows)[[0, 1, 3]].tolist() == [2, 3, 5]


def test_documents_of_a_row_are_known_by_their_positions() -> None:
    rows, positions = ragged([[5, 6, 7, 8], [9, 4]]), ragged([[0, 1, 0, 1], [0, 1]])
    padded, packed = pad_rows(rows, "cpu", positions), pack_rows(rows, "cpu", positions)
    assert padded.input_ids.tolist() == [[5, 6, 7, 8], [9, 4, 0, 0]]
    assert padded.attention_mask is None  # transformers looks at the positions without one alone
    assert padded.position_ids.tolist() == [[0, 1, 0, 1], [0, 1, 0, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 0, 1, 0, 1]]
    assert packed.attention_mask.flatten().tolist() == [2, 2, 2]
    assert padded.starts.tolist() == packed.starts.tolist() == [0, 4]
    assert padded.lengths.tolist() == packed.lengths.tolist() == [4, 2]


def test_two_tokens_are_enough_to_be_packed() -> None:
    assert pack_rows(ragged([[5, 6]])).attention_mask.flatten().tolist() == [2]
    assert pad_rows(ragged([[5]])).input_ids.tolist() == [[5, 0]]


@pytest.mark.parametrize("lay", [pad_rows, pack_rows])
def test_a_response_token_belongs_to_the_position_before_it(lay) -> None:
    rows = lay(ragged([[5, 6, 7, 8], [9, 4]]))
    cells = response_cells(rows, np.array([2, 1]))
    assert rows.input_ids.flatten()[cells].tolist() == [6, 7, 9]
    assert rows.labels(cells).tolist() == [7, 8, 4]


@pytest.mark.parametrize("lay", [pad_rows, pack_rows])
def test_the_first_token_is_never_a_target(lay) -> None:
    rows = lay(ragged([[5, 6, 7], [8, 9]]))
    cells = target_cells(rows, ragged([[True, False, True], [True, True]], bool))
    assert rows.labels(cells).tolist() == [7, 9]
    rows = lay(ragged([[5, 6], [8], [9, 4], []]))
    cells = target_cells(rows, ragged([[True, True], [True], [True, True], []], bool))
    assert rows.labels(cells).tolist() == [6, 4]


@pytest.mark.parametrize("lay", [pad_rows, pack_rows])
@pytest.mark.parametrize("rows", [[], [[]]])
def test_a_batch_without_work_still_makes_a_prediction_that_counts_for_nothing(lay, rows) -> None:
    laid = lay(ragged(rows))
    assert laid.input_ids.shape == laid.attention_mask.shape == (1, 2)
    assert bool(laid.attention_mask.all()) == (not rows)  # a dummy's two tokens see each other
    assert laid.position_ids.tolist() == [[0, 1]]
    assert not len(response_cells(laid, np.zeros(len(rows), np.int64)))
    assert not len(target_cells(laid, ragged(rows, bool)))


@pytest.mark.parametrize("lay", [pad_rows, pack_rows])
def test_the_last_token_of_each_row_speaks_for_it(lay) -> None:
    rows = lay(ragged([[5, 6, 7], [8]]))
    assert rows.input_ids.flatten()[last_cells(rows)].tolist() == [7, 8]
    rows = lay(ragged([[8], [5, 6, 7]]))
    assert rows.input_ids.flatten()[last_cells(rows)].tolist() == [8, 7]


def test_the_first_bin_with_room_takes_an_item() -> None:
    bins = first_fit([3, 9, 4, 4, 1, 12], 10)
    assert [b.tolist() for b in bins] == [[5], [1, 4], [2, 3], [0]]
    assert first_fit([], 10) == []


def test_packed_batches_are_counted_by_their_sum() -> None:
    batches = token_budget_batches(np.array([4, 1, 3, 6]), 7, packed=True)
    assert [b.tolist() for b in batches] == [[3, 1], [0, 2]]


def test_batches_stay_within_the_budget_and_hold_every_row_once() -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 200)
    batches = token_budget_batches(lengths, 64)
    assert sorted(np.concatenate(batches)) == list(range(200))
    assert all(len(b) * lengths[b].max() <= 64 for b in batches)


def test_a_row_over_the_budget_is_alone() -> None:
    batches = token_budget_batches(np.array([3, 100, 2]), 10)
    assert [b.tolist() for b in batches] == [[2, 0], [1]]
    assert token_budget_batches(np.zeros(0, np.int64), 10) == []

"""Full rows of pretraining text: which tokens they hold, what counts, and where they go on."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.batching.text_rows import TextRows
from workers.data.batches import document_batch, stack_batches
from workers.errors import DataError
from workers.records.training import TokenBatch


class Stream:
    """Documents of 3, 5, 0, 2, 3, 5, ... tokens, all different."""

    LENGTHS = (3, 5, 0, 2)

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, start: int, count: int) -> TokenBatch:
        self.calls += 1
        return document_batch([self.document(i) for i in range(start, start + count)])

    def document(self, number: int) -> list[int]:
        return [100 * number + k for k in range(self.LENGTHS[number % 4])]


def text(batch: TokenBatch) -> list[list[int]]:
    return [row.tolist() for row in batch.tokens.rows()]


def test_rows_are_the_documents_end_to_end() -> None:
    batch = TextRows(Stream(), 4, apart=True).take(0, 3)
    assert text(batch) == [[0, 1, 2, 100], [101, 102, 103, 104], [300, 301, 400, 401]]
    assert batch.positions is not None
    assert [p.tolist() for p in batch.positions.rows()] == [
        [0, 1, 2, 0], [0, 1, 2, 3], [0, 1, 0, 1],
    ]  # fmt: skip
    # the first token of a row and of a document has nothing before it
    assert [t.tolist() for t in batch.targets.rows()] == [
        [False, True, True, False], [False, True, True, True], [False, True, False, True],
    ]  # fmt: skip


def test_where_documents_would_see_each_other_a_row_is_one_sequence() -> None:
    batch = TextRows(Stream(), 4, apart=False).take(0, 1)
    assert batch.positions is None
    assert batch.targets.row(0).tolist() == [False, True, True, True]


@pytest.mark.parametrize("row_tokens", [2, 7, 1000])
def test_any_row_is_the_same_however_it_is_reached(row_tokens: int) -> None:
    whole = text(TextRows(Stream(), row_tokens, apart=True).take(0, 12))
    assert {len(row) for row in whole} == {row_tokens}
    stepwise = TextRows(Stream(), row_tokens, apart=True)
    assert text(stepwise.take(0, 5)) + text(stepwise.take(5, 1)) == whole[:6]
    assert text(stepwise.take(9, 3)) == whole[9:]  # forward, over a gap
    assert text(stepwise.take(3, 2)) == whole[3:5]  # and back, as after a roll-back
    assert text(TextRows(Stream(), row_tokens, apart=True).take(7, 2)) == whole[7:9]


def test_going_on_reads_no_document_twice() -> None:
    stream = Stream()
    rows = TextRows(stream, 4, apart=True)
    for start in range(0, 400, 2):
        rows.take(start, 2)
    assert stream.calls == 10  # 1,600 tokens of 640 documents, 64 at a time


def test_text_without_a_token_is_refused() -> None:
    empty = TextRows(lambda _, count: document_batch([[]] * count), 4, apart=True)
    with pytest.raises(DataError, match="hold no token") as caught:
        empty.take(0, 1)
    assert caught.value.where == "data.files.pretraining"


def test_so_many_documents_in_a_row_may_be_empty_and_text_between_them_starts_the_count_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.batching.text_rows._MOST_EMPTY", 3)

    def rows(*lengths: int) -> TextRows:
        text = [[7] * lengths[i % len(lengths)] for i in range(64)]
        return TextRows(lambda first, count: document_batch(text[first : first + count]), 4, True)

    assert text(rows(0, 0, 0, 1).take(0, 2)) == [[7] * 4] * 2
    with pytest.raises(DataError, match="3 consecutive documents"):
        rows(0, 0, 0, 0, 4).take(0, 1)
    with pytest.raises(DataError, match="3 consecutive documents"):
        rows(4, 0, 0, 0, 0).take(0, 2)


def test_full_rows_beside_rows_of_one_document_keep_their_positions() -> None:
    both = stack_batches(document_batch([[7, 8, 9]]), TextRows(Stream(), 4, apart=True).take(0, 1))
    assert both.positions is not None
    assert [p.tolist() for p in both.positions.rows()] == [[0, 1, 2], [0, 1, 2, 0]]
    plain = stack_batches(document_batch([[7, 8, 9]]), document_batch([[1]]))
    assert plain.positions is None
    assert np.array_equal(plain.tokens.values, [7, 8, 9, 1])

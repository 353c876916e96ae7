from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest

from workers.data.tables.store import RowStore
from workers.records.arrays import Ragged


def filled(spill: int) -> tuple[Ragged, list[list[int]]]:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 2**31, size).tolist() for size in rng.integers(0, 40, 300)]
    store = RowStore(np.int32, spill)
    for row in rows[:100]:
        store.append(row)
    chunk = Ragged.from_rows(rows[90:250], np.int32)
    tail = Ragged(chunk.values, chunk.offsets[10:])  # rows that start within their values
    store.extend(tail)
    for row in rows[250:]:
        store.append(np.array(row, np.int32))
    assert len(store) == 300
    return store.finish(), rows


@pytest.mark.parametrize("spill", [1 << 30, 1000, 0])
def test_rows_come_back_from_memory_and_from_disk(spill: int) -> None:
    stored, rows = filled(spill)
    assert [row.tolist() for row in stored.rows()] == rows
    assert stored.values.dtype == np.int32
    part = pickle.loads(pickle.dumps(stored.row(5)))
    assert type(part) is np.ndarray, "a slice of a mapped file travels as plain numbers"
    assert part.tolist() == rows[5]


def test_a_store_on_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stored, rows = filled(0)
    assert list(tmp_path.iterdir()) == [], "the file has no name even while it is read"
    assert stored.row(299).tolist() == rows[299]


@pytest.mark.parametrize("spill", [1 << 20, 0])
def test_an_empty_store(spill: int) -> None:
    assert len(RowStore(np.uint8, spill).finish()) == 0
    store = RowStore(np.uint8, spill)
    store.append(np.frombuffer(b"", np.uint8))
    store.append(np.frombuffer("ü".encode(), np.uint8))
    rows = store.finish()
    assert [bytes(row).decode() for row in rows.rows()] == ["", "ü"]

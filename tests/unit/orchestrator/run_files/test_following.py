"""A growing file of JSON lines, read piece by piece."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.run_files import following
from orchestrator.run_files.following import Following


def number(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError("it must be a number")
    return value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines.jsonl"


def test_only_whole_lines_are_records_and_each_comes_once(path: Path) -> None:
    file = Following(path, number)
    assert file.look().records == []  # it is not there yet
    path.write_text("1\n2\n3")
    assert file.look().records == [1, 2]
    assert (file.torn, file.place, file.size) == (1, 4, 5)
    with path.open("a") as more:
        more.write("4\n5\n")
    assert file.look().records == [34, 5]
    found = file.look()
    assert (found.records, found.replaced, found.more) == ([], False, False)
    assert file.torn == 0


def test_a_long_file_comes_in_pieces(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_CHUNK", 16)
    path.write_text("".join(f"{n}\n" for n in range(100)))
    file, found, looks = Following(path, number), [], 0
    more = True
    while more:
        news = file.look()
        found += news.records
        more, looks = news.more, looks + 1
    assert found == list(range(100))
    assert looks > 10


def test_a_line_longer_than_a_piece_is_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_CHUNK", 16)
    path.write_text(json.dumps("x" * 1000) + "\n7\n")
    file: Following[Any] = Following(path, lambda value: value)
    assert file.look().records == ["x" * 1000, 7]


def test_a_line_beyond_the_limit_is_left_out_and_noted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_CHUNK", 16)
    monkeypatch.setattr(following, "_LONGEST_LINE", 64)
    path.write_text("1\n" + "9" * 500 + "\n2\n")
    file, found = Following(path, number), []
    for _ in range(40):
        found += file.look().records
    assert found == [1, 2]
    assert file.damage.notes() == [f"{path}:2: the line is too long"]


def test_a_line_that_is_no_record_is_noted_with_its_number(path: Path) -> None:
    path.write_bytes(b'1\n{"a":\n"two"\n\xff\n5\n')
    file = Following(path, number)
    assert file.look().records == [1, 5]
    assert [note.split(": ")[0] for note in file.damage.notes()] == [
        f"{path}:2", f"{path}:3", f"{path}:4",
    ]  # fmt: skip


def test_a_file_that_is_cut_or_replaced_is_read_again(path: Path) -> None:
    path.write_text("1\n2\n3\n")
    file = Following(path, number)
    file.look()
    path.write_text("1\n")  # cut to a checkpoint
    found = file.look()
    assert (found.replaced, found.records) == (True, [1])
    other = path.with_suffix(".new")
    other.write_text("8\n9\n")
    other.replace(path)
    found = file.look()
    assert (found.replaced, found.records) == (True, [8, 9])
    path.unlink()
    assert file.look().replaced
    assert not file.look().replaced


def test_a_file_that_was_cut_and_has_grown_since_is_noticed(path: Path) -> None:
    path.write_text("11\n22\n")
    file = Following(path, number)
    file.look()
    with path.open("r+") as same:  # the same inode, longer than before, other numbers
        same.write("11\n33\n44\n")
    found = file.look()
    assert (found.replaced, found.records) == (True, [11, 33, 44])


def test_a_cut_line_that_is_written_again_the_same_is_no_news(path: Path) -> None:
    path.write_text("11\n22\n")
    file = Following(path, number)
    file.look()
    with path.open("r+") as same:  # a resumed run repeats its lines bit for bit
        same.truncate(3)
        same.seek(3)
        same.write("22\n33\n")
    found = file.look()
    assert (found.replaced, found.records) == (False, [33])


def test_a_pipe_does_not_block(path: Path) -> None:
    os.mkfifo(path)
    file = Following(path, number)
    assert file.look().records == []
    assert file.damage.notes() == [f"{path}: it is no file"]

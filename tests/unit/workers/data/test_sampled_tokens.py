"""Ranked completions that were sampled keep their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_files import Files, byte_tokenizer

from workers.data.tokenize.tokenizers import load_tokenizer
from workers.errors import DataError, DataLineError
from workers.records.training import Ranking


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_tokenizer(tmp_path_factory.mktemp("checkpoint"))


def rankings(folder: Path, checkpoint: Path, **changed: Any) -> list[Ranking]:
    ids = load_tokenizer(str(checkpoint))("xy")["input_ids"]
    row = {
        "completions": ["xy", "x", None, "y"],
        "completion_tokens": [ids, [ids[0], 0], [5], [ids[1]]],
        "ranks": [2, 1, 3, 1],
    }
    rows = [{"prompt": f"p{n}"} | row | changed for n in range(20)]
    source = Files(folder, checkpoint)(rankings=rows, completion_limit=changed.pop("limit", 8))
    return source.rankings("train") or []


def test_tokens_are_trained_as_they_were_sampled(tmp_path: Path, checkpoint: Path) -> None:
    x, y = load_tokenizer(str(checkpoint))("xy")["input_ids"]
    for ranking in rankings(tmp_path, checkpoint):
        rows = [row.tolist() for row in ranking.sequences.rows()]
        prompt = len(rows[0]) - 2
        # cut at the limit of the run that sampled it; ended; the null one is left out; cut
        assert [row[prompt:] for row in rows] == [[x, y], [x, 0], [y]]
        assert ranking.ranks.tolist() == [2, 1, 1]


def test_without_tokens_each_text_gets_its_end_token(tmp_path: Path, checkpoint: Path) -> None:
    x, y = load_tokenizer(str(checkpoint))("xy")["input_ids"]
    (first, *_) = rankings(tmp_path, checkpoint, completion_tokens=None)
    rows = [row.tolist() for row in first.sequences.rows()]
    assert [row[len(rows[0]) - 3 :] for row in rows] == [[x, y, 0], [x, 0], [y, 0]]


@pytest.mark.parametrize(
    ("tokens", "kind", "says"),
    [
        ([[1], [2], [3], [4]], DataError, "not the tokens of its text"),
        ([[10_000], [2], [3], [4]], DataError, "not the tokens of its text"),
        ([[], [], [], []], DataError, "not the tokens of its text"),
        ([[1], [2], [3]], DataLineError, "has 3 entries for 4 completions"),
        ([[1], [2], [3], ["x"]], DataLineError, "must be a list of token ids"),
        ([[1], [2], [3], [-1]], DataLineError, "must be a list of token ids"),
        ("xy", DataLineError, '"completion_tokens" must be a list'),
    ],
)
def test_tokens_of_something_else_are_refused(
    tmp_path: Path, checkpoint: Path, tokens: Any, kind: type[DataError], says: str
) -> None:
    with pytest.raises(kind, match=says) as caught:
        rankings(tmp_path, checkpoint, completion_tokens=tokens)
    assert "rankings.jsonl:1" in caught.value.where


def test_ratings_reach_the_rankings_without_those_of_what_is_left_out(
    tmp_path: Path, checkpoint: Path
) -> None:
    for ranking in rankings(tmp_path, checkpoint, likert=[3, 7, 1, 6]):
        assert ranking.likert is not None
        assert ranking.likert.tolist() == [3, 7, 6]


def test_rankings_without_ratings_have_none(tmp_path: Path, checkpoint: Path) -> None:
    assert all(ranking.likert is None for ranking in rankings(tmp_path, checkpoint))

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_files import Files, account

from workers.data.tokenize.data_sets import DataSet, SetKind
from workers.errors import (
    BrokenCheckpointError,
    ConfigError,
    DataError,
    DataLineError,
    EmptyDatasetError,
    MissingCheckpointError,
)
from workers.pocket.tokenizer import build_tokenizer
from workers.pocket.words import ANIMALS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    build_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def open_files(tmp_path: Path, checkpoint: Path) -> Files:
    return Files(tmp_path, checkpoint)


PAIRS = [f"{a} {b}" for a in ANIMALS for b in ANIMALS]


def demonstrations(n: int) -> list[dict[str, str]]:
    return [{"prompt": f"repeat : {p} ?", "completion": f"{p} ."} for p in PAIRS[:n]]


def test_demonstrations(open_files: Files) -> None:
    source = open_files(demonstrations=demonstrations(40))
    train = source.demonstrations("train", 0, 200)
    held = source.demonstrations("heldout", 0, 200)
    assert len(train) == 200, "training goes on epoch after epoch"
    assert 1 <= len(held) < 20, "held-out rows come once"
    texts = [{source.detokenize(row) for row in batch.tokens.rows()} for batch in (train, held)]
    assert not texts[0] & texts[1]
    assert len(texts[0]) + len(texts[1]) == 40
    row, target = held.tokens.row(0), held.targets.row(0)
    prompt, completion = source.detokenize(row[~target]), source.detokenize(row[target])
    assert {"prompt": prompt, "completion": completion} in demonstrations(40)
    assert (row[0], row[-1]) == (1, 2)


def test_a_cursor_resumes_anywhere(open_files: Files) -> None:
    source = open_files(demonstrations=demonstrations(20))
    whole = source.demonstrations("train", 0, 50).tokens
    part = source.demonstrations("train", 33, 17).tokens
    assert np.array_equal(whole.select(range(33, 50)).values, part.values)


def test_long_rows_are_dropped_or_cut_and_counted(open_files: Files) -> None:
    rows = [
        *demonstrations(2),
        {"prompt": "fox " * 16, "completion": "fox"},
        {"prompt": "fox", "completion": "owl " * 9},
        {"prompt": "owl", "completion": ""},
        {"prompt": " ", "completion": "fox"},
    ]
    source = open_files(demonstrations=rows)
    counted = account(source, "demonstrations")
    assert counted.dropped == {
        "prompt over 16 tokens": 1,
        "empty completion": 1,
        "empty prompt": 1,
    }
    assert (counted.cut, counted.read, counted.train + counted.heldout) == (1, 6, 3)
    ids = [
        row.tolist()
        for split in ("train", "heldout")
        for row in source.demonstrations(split, 0, 3).tokens.rows()
    ]
    owl = source.tokenizer.encode("owl")[1]
    cut = next(row for row in ids if row.count(owl) > 5)
    assert cut[-8:] == [owl] * 8, "a cut completion has no end token"


def ranking(i: int, ranks: list[int]) -> dict[str, object]:
    completions = ["fox", "owl", "bear"][: len(ranks)]
    return {"prompt": PAIRS[i], "completions": completions, "ranks": ranks}


def test_rankings(open_files: Files) -> None:
    source = open_files(rankings=[ranking(0, [2, 1, 2]), ranking(1, [1, 2]), ranking(2, [1, 1])])
    train, held = source.rankings("train"), source.rankings("heldout")
    assert train is not None
    assert held is not None
    assert account(source, "rankings").dropped == {"every completion ties": 1}
    both = {r.prompt_id: r for r in (*train, *held)}
    assert both[0].ranks.tolist() == [2, 1, 2]
    assert both[0].pairs == 2
    assert both[0].sequences.row(1).tolist() == [*source.tokenizer.encode("bear bear owl"), 2]


def test_ranks_may_have_gaps_and_any_size(open_files: Files) -> None:
    source = open_files(rankings=[ranking(0, [40000, 7, 10**30]), ranking(1, [5, 9, 9])])
    found = [*(source.rankings("train") or ()), *(source.rankings("heldout") or ())]
    assert sorted(r.ranks.tolist() for r in found) == [[1, 2, 2], [2, 1, 3]]


def test_without_rankings_there_is_none_and_no_labeler(open_files: Files) -> None:
    source = open_files()
    assert source.rankings("train") is None
    assert source.gold([], []) is None
    assert source.cloze("heldout", 0, 1) is None
    with pytest.raises(ConfigError, match="rank"):
        source.label([], [])


def test_prompts(open_files: Files) -> None:
    source = open_files(prompts=[{"prompt": p} for p in (*PAIRS[:30], PAIRS[0])])
    assert account(source, "prompts").dropped == {"repeated": 1}
    train = {p.text: p for p in source.prompts("ppo", 0, 60)}
    held = {p.text: p for p in source.prompts("heldout", 0, 60)}
    assert train.keys() | held.keys() == set(PAIRS[:30])
    assert not train.keys() & held.keys()
    for p in (*train.values(), *held.values()):
        assert p.text == PAIRS[p.id]
        assert p.tokens == tuple(source.tokenizer.encode(p.text))
    assert len({p.key for p in (*train.values(), *held.values())}) == 30


def test_evaluation_prompts_are_trained_on_nowhere(open_files: Files) -> None:
    rows = [*demonstrations(40), {"prompt": PAIRS[0], "completion": "fox"}]
    source = open_files(
        prompts=[{"prompt": p} for p in PAIRS[:10]],
        evaluation_prompts=[{"prompt": p} for p in PAIRS[:3]],
        demonstrations=rows,
    )
    assert [p.text for p in source.prompts("heldout", 0, 99)] == PAIRS[:3]
    assert {p.text for p in source.prompts("ppo", 0, 7)} == set(PAIRS[3:10])
    assert account(source, "prompts").dropped == {"also an evaluation prompt": 3}
    trained = [source.detokenize(r) for r in source.demonstrations("train", 0, 99).tokens.rows()]
    assert f"{PAIRS[0]} fox" not in trained


def test_a_prompt_is_held_out_in_all_files_or_in_none(open_files: Files) -> None:
    source = open_files(
        prompts=[{"prompt": p} for p in PAIRS[:100]],
        rankings=[ranking(i, [1, 2]) for i in range(50, 150)],
    )
    held_prompts = {p.text for p in source.prompts("heldout", 0, 100)}
    rankings = source.rankings("train")
    assert rankings is not None
    ranked = {PAIRS[50 + r.prompt_id] for r in rankings}
    assert not held_prompts & ranked


def test_documents_come_whole_in_windows(open_files: Files) -> None:
    texts = [" ".join(PAIRS[i : i + 30]) for i in range(3)]
    source = open_files(pretraining=[{"text": t} for t in texts], prompt_limit=10)
    for split in ("train", "heldout"):
        count = 4 if split == "heldout" else 8
        rows = list(source.pretraining(split, 0, count).tokens.rows())
        lengths = sorted(len(row) for row in rows)
        # 60 words, a start and an end token in windows of 10 + 8.
        assert lengths == sorted([18, 18, 18, 8] * (count // 4))
    held = source.pretraining("heldout", 0, 4)
    assert source.detokenize(held.tokens.values) in texts
    assert held.targets.values.all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "fox"', "not valid JSON: Expecting ',' delimiter after 16 characters"),
        (b'{"prompt": "fox", "completion": NaN}', "NaN"),
        (b'{"prompt": "fox", "completion": -Infinity}', "Infinity"),
        (b'{"prompt": "fox"}', '"completion" is missing'),
        (b"{}", "whose fields are nothing"),
        (b'{"prompt": "fox", "completion": 3}', "must be a string, not a number"),
        (b'{"prompt": null, "completion": "owl"}', "must be a string, not null"),
        (b'["fox", "owl"]', "must be a JSON object, not a list"),
        (b'{"prompt": "fox\xff", "completion": "owl"}', "invalid UTF-8 at byte 16"),
        (b'{"prompt": "fox", "completion": "\\ud800"}', "unpaired surrogate"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": ' + b"1" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_bad_lines_are_named(open_files: Files, line: bytes, message: str) -> None:
    good = b'{"prompt": "fox", "completion": "owl"}'
    with pytest.raises(DataLineError, match=message) as caught:
        open_files(demonstrations=b"\n".join([good, b"", line, good]))
    assert caught.value.where.startswith("data.files.demonstrations: ")
    assert caught.value.where.endswith("demonstrations.jsonl:3")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": [1, 2]}, "2 entries for 3 completions"),
        ({"ranks": [0, 1, 2]}, "ranks start at 1"),
        ({"ranks": [1, 2.5, 3]}, "whole number"),
        ({"ranks": [1, True, 3]}, "whole number, not a boolean"),
        ({"ranks": "123"}, "must be a list"),
        ({"completions": ["fox", 1, "owl"]}, r'"completions\[1\]" must be a string'),
        ({"completions": ["fox"], "ranks": [1]}, "at least two"),
    ],
)
def test_bad_rankings_are_named(open_files: Files, change: dict[str, object], message: str) -> None:
    with pytest.raises(DataLineError, match=message):
        open_files(rankings=[ranking(0, [1, 2, 3]) | change])


def test_a_byte_order_mark_is_no_error(open_files: Files) -> None:
    source = open_files(prompts=b'\xef\xbb\xbf{"prompt": "fox"}\r\n{"prompt": "owl"}\r\n')
    assert len(source.prompts("ppo", 0, 1)) == 1


@pytest.mark.parametrize("rows", [[], [{"prompt": "fox " * 99, "completion": "fox"}]])
def test_empty_data_sets(open_files: Files, rows: list[dict[str, str]]) -> None:
    with pytest.raises(EmptyDatasetError) as caught:
        open_files(demonstrations=rows)
    assert "demonstrations" in caught.value.where
    assert ("prompt over 16 tokens" in caught.value.fix) == bool(rows)


def test_a_kind_that_no_set_holds(open_files: Files) -> None:
    with pytest.raises(EmptyDatasetError, match="demonstrations"):
        open_files(prompts=[{"prompt": "fox"}, {"prompt": "owl"}]).demonstrations("train", 0, 1)


@pytest.mark.parametrize(
    "files",
    [
        {"demonstrations": [row | {"user": "ann"} for row in demonstrations(9)]},
        {"demonstrations": demonstrations(1) * 9},
        {"rankings": [{"prompt": "fox", "chosen": a, "rejected": "fox"} for a in ANIMALS[1:5]]},
        {"pretraining": [{"text": "fox owl"}]},
        {"prompts": [{"prompt": "fox"}]},
    ],
)
def test_a_kind_of_which_nothing_is_held_out(open_files: Files, files: dict[str, object]) -> None:
    with pytest.raises(EmptyDatasetError, match="is held out") as caught:
        open_files(**files)
    assert caught.value.where == f"data.files.{next(iter(files))}"
    assert "data.heldout_fraction" in caught.value.fix


def test_evaluation_prompts_are_the_held_out_part_of_prompts(open_files: Files) -> None:
    source = open_files(prompts=[{"prompt": "fox"}], evaluation_prompts=[{"prompt": "owl"}])
    assert account(source, "prompts").train == account(source, "evaluation_prompts").heldout == 1


def test_missing_files_and_checkpoints(open_files: Files, tmp_path: Path) -> None:
    missing = DataSet("mine", SetKind.prompts, str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"none\.jsonl"):
        open_files(missing)
    with pytest.raises(MissingCheckpointError):
        open_files(rendering={"checkpoint": str(tmp_path / "none")})
    with pytest.raises(BrokenCheckpointError):
        open_files(rendering={"checkpoint": str(tmp_path)})


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_file_in_utf_16_is_told_how_to_convert(open_files: Files, encoding: str) -> None:
    text = '\ufeff{"prompt": "fox", "completion": "owl"}\n'
    with pytest.raises(DataError, match="UTF-16, not UTF-8") as caught:
        open_files(demonstrations=text.encode(encoding))
    assert caught.value.where.startswith("data.files.demonstrations: ")
    assert "iconv -f UTF-16 -t UTF-8" in caught.value.fix


def test_all_prompts_too_long_name_the_key(open_files: Files) -> None:
    row = json.dumps({"prompt": "fox " * 40, "completion": "owl"}).encode()
    with pytest.raises(EmptyDatasetError) as caught:
        open_files(demonstrations=b"\n".join([row, row]))
    assert "prompt over 16 tokens (data.files.max_prompt_tokens)" in caught.value.fix

"""Columns of a prompt's row reach whoever reads the prompt (`data.keep_columns`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from composing import composed
from data_files import Files, account, byte_tokenizer

from orchestrator.session.sources import make_source
from workers.data.files import FileSource
from workers.data.tokenize.data_sets import DataSet, SetKind
from workers.errors import ConfigError, DataLineError
from workers.user_functions.reward_function import Exchange, load_reward

ROWS = [
    {"prompt": "1 + 1 =", "answer": "2", "extra": {"level": [1, 2.5]}},
    {"prompt": "2 + 2 =", "answer": 4, "extra": {"level": [3]}},
]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, byte_tokenizer(tmp_path / "tokenizer"))


def opened(files: Files, rows: Any, *keep: str, **feeding: Any) -> FileSource:
    asked = DataSet("asked", SetKind.evaluation_prompts, files.write("asked", rows), keep=keep)
    return files(asked, feeding=feeding)


@pytest.mark.parametrize("feeding", [{}, {"workers": 2}, {"cache_mib": 8}])
def test_a_prompt_carries_the_columns_that_are_kept(
    files: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, feeding: dict[str, int]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):  # the second time from the cache, where there is one
        source = opened(files, ROWS, "answer", "extra.level", **feeding)
        found = [prompt.asked.columns() for prompt in source.prompts("heldout", 0, 2)]
        assert {"answer": "2", "extra.level": [1, 2.5]} in found
        assert {"answer": 4, "extra.level": [3]} in found
    assert account(source, "asked").unread == []
    bare = opened(files, ROWS, **feeding)  # what was cached for other columns is not used
    assert [prompt.row for prompt in bare.prompts("heldout", 0, 2)] == ["", ""]
    assert set(account(bare, "asked").unread) == {"answer", "extra"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a"}, r'column "answer" is missing or null \(found "prompt"\)'),
        ({"prompt": "a", "answer": None}, r'column "answer" is missing or null'),
    ],
)
def test_a_row_without_the_column_is_refused_at_its_line(
    files: Files, row: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataLineError, match=said) as raised:
        opened(files, [ROWS[0], row], "answer")
    assert raised.value.where.endswith("asked.jsonl:2")
    assert "data.keep_columns" in raised.value.fix
    dropped = opened(files, [ROWS[0], row], "answer", on_bad_line="drop")
    assert account(dropped, "asked").dropped == {"bad line": 1}


def test_what_json_cannot_hold_is_refused(files: Files, tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a"], "answer": pa.array([b"\xff"], pa.binary())})
    pq.write_table(table, tmp_path / "asked.parquet")
    path = str(tmp_path / "asked.parquet")
    asked = DataSet("asked", SetKind.evaluation_prompts, path, keep=("answer",))
    with pytest.raises(DataLineError, match='column "answer" is of type bytes'):
        files(asked)


def test_a_reward_function_gets_the_columns(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "by_row.py").write_text(
        "def score(prompts, responses, rows):\n"
        "    found = [float(str(r['answer']) in a) for a, r in zip(responses, rows)]\n"
        "    rows[0].clear()\n"
        "    return found\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = opened(files, ROWS, "answer")
    prompts = {p.text: p for p in source.prompts("heldout", 0, 2)}
    both = [Exchange(prompts[text].asked, " 2", True) for text in ("1 + 1 =", "2 + 2 =")]
    caller = load_reward("by_row:score")
    for _ in range(2):  # the function changes what it gets, which is a copy
        assert [reply.value for reply in caller.ask(both)] == [1.0, 0.0]


def test_the_pocket_world_has_answers() -> None:
    given = ("+experiment=pocket_tiny", "data.keep_columns=[answer,category]")
    (first, *_) = make_source(composed(*given), {}).prompts("ppo", 0, 8)
    assert set(first.asked.columns()) == {"answer", "category"}
    with pytest.raises(ConfigError, match="no column 'label'") as raised:
        make_source(composed("+experiment=pocket_tiny", "data.keep_columns=[label]"), {})
    assert raised.value.where == "data.keep_columns"

"""A format of one's own, as docs/extending.md shows it: from outside, and as a module of ours."""

from __future__ import annotations

import gzip
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import workers.data.formats
from workers.data.formats import kinds
from workers.data.formats.readers import read_rows, scan_rows
from workers.errors import ConfigError, DataError, DataLineError

ROOT = Path(__file__).resolve().parents[5]
TEXT = "prompt: What is a: b?\ncompletion: a ratio\n\nprompt: hello\n"


@pytest.fixture
def example() -> str:
    page = (ROOT / "docs" / "extending.md").read_text()
    section = page.split("## A new file format")[1]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of a run; modules that are imported from it are forgotten."""
    known, paths = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]
    sys.path[:] = paths
    kinds._by_suffix.cache_clear()


def test_the_example_reads_rows_by_its_import_path(folder: Path, example: str) -> None:
    (folder / "my_formats.py").write_text(example)
    (folder / "rows.txt").write_text(TEXT)
    rows = list(read_rows("rows.txt", format="my_formats:FORMAT"))
    assert [row.fields for row in rows] == [
        {"prompt": "What is a: b?", "completion": "a ratio"},
        {"prompt": "hello"},
    ]
    assert rows[0].where == "rows.txt:3"


def test_a_bad_row_of_the_example_is_an_error_in_its_place(folder: Path, example: str) -> None:
    (folder / "my_formats.py").write_text(example)
    (folder / "rows.txt").write_text("prompt: one\n\nprompt two\n\nprompt: three\n")
    rows = list(scan_rows("rows.txt", format="my_formats:FORMAT"))
    assert isinstance(rows[1], DataLineError)
    assert rows[1].where == "rows.txt:3"


def test_the_example_as_a_module_of_ours_is_found_by_name_and_suffix(
    folder: Path, example: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = folder / "added"
    package.mkdir()
    (package / "fields_file.py").write_text(example)
    monkeypatch.setattr(
        workers.data.formats, "__path__", [*workers.data.formats.__path__, str(package)]
    )
    kinds._by_suffix.cache_clear()
    with gzip.open(folder / "a.fields.gz", "wt") as file:
        file.write(TEXT)
    assert [len(row.fields) for row in read_rows("a.fields.gz")] == [2, 1]
    data = folder / "data"
    data.mkdir()
    (data / "train.fields").write_text(TEXT)
    assert len(list(read_rows(str(data)))) == 2
    (folder / "other").write_text(TEXT)
    assert len(list(read_rows("other", format="fields"))) == 2


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raise ValueError('no file of mine')", "failed: ValueError at {own}:5: no file of mine"),
        ("yield {'prompt': 'p'}", "TypeError: it yields dict, not Line or DataLineError"),
        ("return 5", "failed: TypeError"),
        ("yield Line([1], path)", "fields are no mapping"),
        ("yield Line({1: 'p'}, path)", "fields are no mapping"),
        ("yield Line({'prompt': 'p'}, 3)", "`where` is no text"),
        ("yield exit(0)", "SystemExit"),
    ],
)
def test_what_a_reader_raises_names_file_and_line(folder: Path, source: str, says: str) -> None:
    own = folder / "mine.py"
    own.write_text(
        "from workers.data.formats.kinds import Format\n"
        "from workers.data.formats.line import Line\n\n"
        f"def scan(path, meter):\n    {source}\nF = Format(scan)\n"
    )
    (folder / "rows.txt").write_text(TEXT)
    with pytest.raises(DataError, match="the reader mine:F failed") as caught:
        list(read_rows("rows.txt", format="mine:F"))
    assert says.format(own=own) in caught.value.what
    assert caught.value.where == "rows.txt"


def test_a_format_that_there_is_not_is_refused_with_the_nearest(folder: Path) -> None:
    (folder / "rows.txt").write_text(TEXT)
    with pytest.raises(ConfigError, match="there is no data format 'jsonk'") as caught:
        list(read_rows("rows.txt", format="jsonk"))
    assert "did you mean json" in caught.value.fix
    assert "auto, datasets, csv, json, jsonl, parquet, text" in caught.value.fix


def test_a_format_without_a_function_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match="scan is None"):
        kinds.Format(None)  # pyright: ignore[reportArgumentType]

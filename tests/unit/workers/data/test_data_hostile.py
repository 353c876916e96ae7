"""Data files that would cost hours, memory or a traceback: each is refused, or counted, at once."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import Files, byte_tokenizer

from orchestrator.data.inspection import Inspection, inspect, measure_characters
from workers.data.formats import json_file, lines
from workers.data.formats.readers import read_rows, scan_rows
from workers.data.recognise.recognise import read_examples
from workers.errors import DataError, DataLineError

MIB = 2**20
Put = Callable[[str, bytes], str]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    return write


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz"])
@pytest.mark.parametrize("space", [b"\n", b" " * 10_000 + b"\n", b" "])
def test_white_space_without_end_is_refused(
    put: Put, monkeypatch: pytest.MonkeyPatch, name: str, space: bytes
) -> None:
    if space != b" ":  # a single line has a limit of its own
        for module in (lines, json_file):
            monkeypatch.setattr(module, "MAX_LINE_BYTES", MIB // 8)
    row = b"prompt\na\n" if name == "a.csv" else b'[{"prompt": "a"}]\n'
    row = row[1:-2] + b"\n" if "jsonl" in name else row
    content = row + space * ((10 if space == b" " else 1) * MIB // len(space) + 1)
    path = put(name, gzip.compress(content, 1) if name.endswith("gz") else content)
    with pytest.raises(DataError, match=r"white space in a row|longer than 8 MiB"):
        list(read_rows(path))


def test_a_line_without_end_is_not_read_to_its_end(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_LONGEST_LINE_BYTES", 12 * MIB)
    path = put("a.jsonl.gz", gzip.compress(b"x" * (32 * MIB), 1))
    with pytest.raises(DataError, match="a line of over 12 MiB"):
        list(scan_rows(path))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"prompt": "a", "prompt": "b"}', "'prompt' is twice"),
        (b'{"prompt": "a", "more": {"x": 1, "x": 1}}', "'x' is twice"),
        (rb'{"prompt": "a", "\ud800": 1}', "unpaired surrogate"),
        (rb'{"prompt": "a", "b": [{"\udfff": 1}]}', "unpaired surrogate"),
        (rb'{"prompt": "\ud800"}', "unpaired surrogate"),
        (b'{"prompt": "a", "b": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
        (b'{"prompt": "a", "b": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_lines_that_json_alone_would_let_pass(put: Put, line: bytes, complaint: str) -> None:
    for path in (put("a.jsonl", line), put("a.json", b"[" + line + b"]")):
        with pytest.raises(DataError, match=complaint) as caught:
            list(read_examples(path, "prompts"))
        str(caught.value).encode()  # it can be printed


@pytest.mark.parametrize("name", ["a.csv", "a.txt"])
def test_text_with_nul_characters_is_none(put: Put, name: str) -> None:
    path = put(name, "text\nwords\n".encode("utf-16-le"))
    with pytest.raises(DataError, match="NUL character"):
        list(read_examples(path, "pretraining"))


def test_a_csv_header_of_bad_bytes(put: Put) -> None:
    with pytest.raises(DataError, match="header line holds invalid UTF-8"):
        list(scan_rows(put("a.csv", b"prom\xffpt\na\n")))


def test_parquet_of_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="two columns of one name"):
        list(scan_rows(str(tmp_path / "a.parquet")))


def test_parquet_rows_are_bounded_as_lines_are(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a", "x" * (9 * MIB), "b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = list(scan_rows(str(tmp_path / "a.parquet")))
    assert [isinstance(row, DataLineError) for row in rows] == [False, True, False]


def test_parquet_of_any_type_is_read_or_refused(tmp_path: Path) -> None:
    import datetime
    import decimal

    values = {
        "decimal": [decimal.Decimal("1.5")],
        "date": [datetime.date(2026, 1, 1)],
        "span": [datetime.timedelta(1)],
        "bytes": [b"\xff"],
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())),
        "time": pa.array([2**62], pa.timestamp("us")),
    }
    for name, column in values.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"prompt": column}), path)
        with pytest.raises(DataError):
            list(read_examples(str(path), "prompts"))
        pq.write_table(pa.table({"prompt": ["a"], "more": column}), path)
        if name != "time":
            assert len(list(read_examples(str(path), "prompts"))) == 1


@pytest.mark.parametrize("cut", [3, 30, 200])
def test_damaged_parquet_is_a_typed_error(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"] * 50}), path)
    content = bytearray(path.read_bytes())
    content[cut : cut + 40] = bytes(255 - b for b in content[cut : cut + 40])
    path.write_bytes(content)
    with pytest.raises(DataError):
        list(read_examples(str(path), "prompts"))


def _ranking(count: int) -> dict[str, object]:
    return {
        "prompt": "p",
        "completions": [f"c{i}" for i in range(count)],
        "ranks": [i // 2 + 1 for i in range(count)],
    }


def test_rankings_of_very_many_completions_are_dropped_and_counted(put: Put) -> None:
    rows = [_ranking(256), _ranking(257), _ranking(20_000)]
    path = put("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    inspection = Inspection("comparisons", "characters")
    for _ in inspect(read_examples(path, "comparisons"), inspection, measure_characters):
        pass
    assert inspection.usable == 1
    assert dict(inspection.drops) == {"over 256 completions": 2}
    assert (inspection.pairs, inspection.tied_pairs) == (256 * 255 // 2 - 128, 128)


def test_token_ids_beyond_the_embeddings_are_found_when_files_are_read(tmp_path: Path) -> None:
    open_files = Files(tmp_path, byte_tokenizer(tmp_path / "tokenizer"))
    rows = [{"prompt": c, "completion": c} for c in "abc"]
    highest = ord("c") - ord("!") + 1  # the printable bytes come first, behind the end token
    assert open_files(demonstrations=rows, rendering={"embeddings": highest + 1})
    with pytest.raises(DataError, match=rf"token id {highest} \('c'\)") as caught:
        open_files(demonstrations=rows, rendering={"embeddings": highest})
    assert "demonstrations.jsonl" in caught.value.where
    assert str(tmp_path / "tokenizer") in caught.value.where

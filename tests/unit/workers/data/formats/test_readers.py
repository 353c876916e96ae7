from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.data.formats.lines import Meter, bounded_lines
from workers.data.formats.readers import read_rows, scan_rows
from workers.data.recognise.recognise import read_examples
from workers.errors import ConfigError, DataError, DataLineError, EmptyDatasetError

ROWS = [{"prompt": "a é\n", "n": 1}, {"prompt": "b", "n": 2}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()

Put = Callable[[str, bytes | str], str]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(name: str, content: bytes | str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def fields(path: str, **options: str) -> list[object]:
    return [dict(row.fields) for row in read_rows(path, **options)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", JSONL),
        ("rows.jsonl.gz", gzip.compress(JSONL, mtime=0)),
        ("rows.ndjson", b"\xef\xbb\xbf" + JSONL.replace(b"\n", b"\r\n")),
        ("rows.json", JSONL),
        ("rows.json", json.dumps(ROWS, indent=2)),
        ("rows.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
        ("rows.json", json.dumps({"version": 1.5, "about": {"by": []}, "data": ROWS})),
        ("no_suffix", JSONL),
        ("no_suffix", json.dumps(ROWS)),
    ],
)
def test_json_in_every_dress(put: Put, name: str, content: bytes | str) -> None:
    assert fields(put(name, content)) == ROWS


TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHARED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize("row", [{"messages": TURNS}, {"id": 1, "conversations": SHARED}])
def test_a_file_of_one_dialogue(put: Put, row: object) -> None:
    assert fields(put("one.json", json.dumps(row))) == [row], "on one line, as in JSONL"
    assert fields(put("one.json", json.dumps([row], indent=2))) == [row]
    with pytest.raises(DataError, match="one dialogue") as caught:
        fields(put("one.json", json.dumps(row, indent=2)))
    assert "[ before it and ] after it" in caught.value.fix


def test_places_of_rows(put: Put) -> None:
    path = put("rows.jsonl", b"\n" + JSONL)
    assert [row.where for row in read_rows(path)] == [f"{path}:2", f"{path}:3"]
    path = put("rows.json", json.dumps(ROWS))
    assert [row.where for row in read_rows(path)] == [f"{path} row 1", f"{path} row 2"]


def test_parquet(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "scores": [float(i), 0.5]} for i in range(600)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    path = str(tmp_path / "rows.parquet")
    meter = Meter()
    read = list(scan_rows(path, meter=meter))
    assert [row.fields for row in read if not isinstance(row, DataLineError)] == rows
    assert read[-1].where == f"{path} row 600"
    assert (meter.done, meter.total, meter.unit) == (600, 600, "rows")
    (tmp_path / "other").write_bytes((tmp_path / "rows.parquet").read_bytes())
    assert fields(str(tmp_path / "other")) == rows, "known by its content"


def test_parquet_with_invalid_text_names_row_and_column(tmp_path: Path) -> None:
    column = pa.array([b"good", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "rows.parquet")
    first, second = scan_rows(str(tmp_path / "rows.parquet"))
    assert not isinstance(first, DataLineError)
    assert isinstance(second, DataLineError)
    assert second.where.endswith("row 2")
    assert '"text" holds invalid UTF-8' in str(second)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0, 10**7], pa.date32()),  # days; Python's calendar ends after 2.9 million
        pa.array([0, 10**18], pa.timestamp("us")),
        pa.array([0, 2**62], pa.duration("s")),
    ],
)
def test_parquet_with_times_beyond_the_calendar(tmp_path: Path, column: pa.Array) -> None:
    table = pa.table({"text": ["a", "b"], "at": column})
    pq.write_table(table, tmp_path / "rows.parquet")
    first, second = scan_rows(str(tmp_path / "rows.parquet"))
    assert not isinstance(first, DataLineError)
    assert isinstance(second, DataLineError)
    assert '"at" of type ' in second.what
    assert second.where.endswith("row 2")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="cannot read the data set"):
        list(read_rows(str(tmp_path / "saved")))


def test_csv(put: Put) -> None:
    path = put("rows.csv", 'prompt,n\r\n"two\nlines, ""quoted""",1\r\n\r\nb,\r\n')
    rows = list(read_rows(path))
    assert [dict(row.fields) for row in rows] == [
        {"prompt": 'two\nlines, "quoted"', "n": "1"},
        {"prompt": "b", "n": None},
    ]
    assert [row.where for row in rows] == [f"{path}:2", f"{path}:5"]
    assert fields(put("rows.tsv", "a\tb\n1,\t2\n")) == [{"a": "1,", "b": "2"}]


@pytest.mark.parametrize(
    ("content", "message", "line"),
    [
        (b"a,b\n1,2\n1\n", "1 cells for 2 columns", 3),
        (b"a,b\n1,2\n1,\xff\n", '"b" holds invalid UTF-8', 3),
        (b'a,b\n1,2\n"1"x,2\n', "not valid CSV", 3),
        (b'a,b\n1,2\n1,"x\n2,y\n', "not valid CSV: unexpected end", 3),
        (b'a,b\n1,2\n1,"x\n' + b"2,y\n" * 1000 + b'3,z"\n4,q\n', "more than 1,000 lines", 3),
        (b"a,a\n1,2\n", "distinct names", 1),
    ],
)
def test_bad_csv_is_named(put: Put, content: bytes, message: str, line: int) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list(read_rows(put("rows.csv", content)))
    assert caught.value.where.endswith(f"rows.csv:{line}")


@pytest.mark.parametrize("row", ['2,"x', '"2"x,y'])
def test_a_stray_quotation_mark_is_no_bad_line_to_drop(put: Put, row: str) -> None:
    path = put("rows.csv", f"id,text\n1,a\n{row}\n" + "3,b\n" * 9)
    with pytest.raises(DataError, match="not valid CSV"):
        list(read_examples(path, "pretraining", on_bad_line="drop"))


def test_a_cell_of_many_lines(put: Put) -> None:
    text = "a\n" * 900
    assert fields(put("rows.csv", f'text\n"{text}"\n')) == [{"text": text}]


def test_text_is_cut_at_blank_lines_and_nothing_is_lost(put: Put) -> None:
    text = "".join(f"{i} {'word ' * 200}\n\n" for i in range(40)) + "long " * 5000 + "\n\n\nend\n"
    pieces = [str(row.fields["text"]) for row in read_rows(put("text.txt", text))]
    assert "".join(pieces) == text
    assert max(map(len, pieces)) < 10_000
    assert all(piece.endswith("\n\n") for piece in pieces[:8])
    assert all(piece.strip() for piece in pieces)


def test_folders(put: Put, tmp_path: Path) -> None:
    import datasets

    put("files/train.jsonl", JSONL)
    test = put("files/test.jsonl", '{"prompt": "t", "n": 3}\n')
    folder = str(tmp_path / "files")
    assert fields(folder) == ROWS
    assert [row.where for row in read_rows(folder, split="test")] == [f"{test}:1"]
    with pytest.raises(DataError, match="no split 'dev'") as caught:
        list(read_rows(folder, split="dev"))
    assert "train, test" in caught.value.fix
    saved = tmp_path / "saved"
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(saved)
    assert fields(str(saved)) == ROWS
    with pytest.raises(DataError, match="no split 'test'"):
        list(read_rows(str(saved), split="test"))
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert fields(str(tmp_path / "one"), format="datasets") == ROWS
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="data files"):
        list(read_rows(str(tmp_path / "empty")))


def test_a_folder_with_a_loading_script_runs_no_code(put: Put, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    put("script/script.py", f"open({str(mark)!r}, 'w')\n")
    with pytest.raises(DataError):
        list(read_rows(str(tmp_path / "script")))
    assert not mark.exists()


def test_a_hub_id_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="hub is out of reach") as caught:
        list(read_rows("nobody/no-such-set"))
    assert "save_to_disk" in caught.value.fix


def test_long_lines_are_never_held_whole(put: Put) -> None:
    path = put("rows.jsonl", b'{"prompt": "' + b"x" * 3_000_000 + b'"}\n{"prompt": "b"}\n')
    tracemalloc.start()
    lines = list(bounded_lines(path, limit=10_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(lines[0][1], DataLineError)
    assert lines[1] == (2, b'{"prompt": "b"}\n')
    assert peak < 200_000


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "text.txt"])
def test_a_line_of_ten_megabytes_is_refused(put: Put, name: str) -> None:
    row = b'"' + b"x" * 10_000_000 + b'"'
    content = {"rows.json": b'[{"a": ' + row + b"}]", "rows.csv": b"a\n" + row + b"\n"}
    with pytest.raises(DataLineError, match="longer than 8 MiB") as caught:
        list(read_rows(put(name, content.get(name, b'{"a": ' + row + b"}\n"))))
    assert name in caught.value.where


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "cannot open"),
        ("none.parquet", None, "cannot open"),
        ("cut.jsonl.gz", gzip.compress(JSONL * 99, mtime=0)[:-20], "gzip file is truncated"),
        ("bad.jsonl.gz", b"\x1f\x8b" + b"\0" * 50, "gzip file is broken"),
        ("cut.parquet", b"PAR1" + b"\0" * 50, "not a readable Parquet file"),
        ("rows.bin", b"\x00\x01\x02", "format of the data file is not known"),
        ("rows.json", b'[{"a": 1}, {"a": ', "not valid JSON"),
        ("rows.json", b'[{"a": 1}] x', "more text"),
        ("rows.json", b'{"a": [{"b": 1}],\n "c": [{"b": 1}]}', "second list"),
        ("rows.json", b'{"a": 1,\n "b": 2}', "holds no list"),
        ("rows.json", b'"text"', "format of the data file"),
        ("rows.json", b'[{"a": "\xff"}]', "invalid UTF-8"),
        ("rows.json", b'[{"a": 1}, 3]', "must be a JSON object, not a number"),
        ("rows.json", b'[{"a": {"b": [1, NaN]}}]', r'"a.b\[1\]" is NaN'),
        ("rows.json", b"[" * 100_000, "nested too deeply"),
        ("rows.json", b'[{"a": ' + b"[" * 600 + b"NaN" + b"]" * 600 + b"}]", r"\[0\]\" is NaN"),
        ("rows.jsonl", b'{"a": ' * 600 + b"NaN" + b"}" * 600, r"a\.a.*\.a\" is NaN"),
        ("rows.jsonl", b'{"a": ' * 90_000 + b"1" + b"}" * 90_000, "nested too deeply"),
        ("rows\0.jsonl", None, "null byte"),
        ("r" * 300 + ".jsonl", None, "too long"),
    ],
)
def test_bad_files_are_named(
    put: Put, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = str(tmp_path / name) if content is None else put(name, content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_rows(path))
    assert name.replace("\0", r"\x00") in caught.value.where
    assert len(caught.value.what) < 300
    assert caught.value.fix


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("e.jsonl", b""),
        ("e.json", b"[]"),
        ("e.csv", b"a,b\n"),
        ("e.txt", b"\n \n"),
        ("e.json", b""),
    ],
)
def test_an_empty_file_is_refused(put: Put, name: str, content: bytes) -> None:
    with pytest.raises(EmptyDatasetError, match="no row"):
        list(read_rows(put(name, content)))


def test_formats(put: Put) -> None:
    assert fields(put("rows.txt", JSONL), format="jsonl") == ROWS
    with pytest.raises(ConfigError, match="no data format 'jsnl'"):
        list(read_rows(put("rows.jsonl", JSONL), format="jsnl"))

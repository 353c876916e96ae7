"""Data files of every format, damaged, and rows of every shape with fields that are wrong.

A case reads one file as `inspect` and a run do: its kind is told, then every row becomes an example
or a drop. A file of which no row is left is an error, as it is in a run.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fuzz.frame import Case
from workers.data.recognise.kinds import kind_of_data
from workers.data.recognise.recognise import Kind, Noted, read_examples
from workers.data.rows.examples import Rejected
from workers.errors import DataError, EmptyDatasetError

Row = dict[str, Any]

_TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
_OTHER = [_TURNS[0], {"role": "assistant", "content": "b"}]
# kind, a row, and the fields without which it is none of that kind
_SHAPES: list[tuple[Kind, Row, tuple[str, ...]]] = [
    ("demonstrations", {"prompt": "p", "completion": "c"}, ("prompt", "completion")),
    ("demonstrations", {"messages": _TURNS}, ("messages",)),
    (
        "demonstrations",
        {"instruction": "i", "input": "", "output": "o"},
        ("instruction", "output"),
    ),
    ("demonstrations", {"question": "q", "answer": "a", "system": "s"}, ("question", "answer")),
    (
        "demonstrations",
        {"instruction": "i", "instances": [{"input": "x", "output": "o"}]},
        ("instruction", "instances"),
    ),
    (
        "comparisons",
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        ("prompt", "chosen", "rejected"),
    ),
    ("comparisons", {"chosen": _TURNS, "rejected": _OTHER}, ("chosen", "rejected")),
    (
        "comparisons",
        {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 3, 2]},
        ("prompt", "completions", "ranks"),
    ),
    (
        "comparisons",
        {"messages": _TURNS[:1], "completions": ["a", "b"], "scores": [0.5, 1.5]},
        ("messages", "completions", "scores"),
    ),
    (
        "comparisons",
        {"prompt": "p", "completions": ["a", "b"], "better": "b"},
        ("prompt", "completions"),
    ),
    ("prompts", {"prompt": "p", "history": [["q", "a"]]}, ("prompt",)),
    ("prompts", {"turns": ["t"]}, ("turns",)),
    ("pretraining", {"text": "t"}, ("text",)),
]
_WRONG: list[Any] = [
    *(None, 7, 1.5, True, "", " \n", [], {}, [7], [None], [[]], {"a": None}, [{}], "\ud800"),
    *(10**400, [[["a"]]], {"role": "user"}, [{"role": 3, "content": "x"}], float("nan")),
]
_OPTIONAL = ("system", "user", "annotator", "id", "history", "input", "label", "weight", "tools")
_PATHS = ("*", "*.*", ".", "..", "prompt.*", "prompt.0", "a.*.b.*", "completions.*", "0", "x" * 999)
_FIELDS = ("prompt", "completion", "completions", "ranks", "scores", "better", "text", "messages")
_FORMATS = ("jsonl", "json", "csv", "parquet", "txt", "jsonl.gz", "folder", "nameless")


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    """Yield `count` cases; equal seeds make equal files."""
    rng = random.Random(f"data files {seed}")
    makers = (_wrong_field, _missing_field, _extra_field, _damaged, _mapped)
    for number in range(count):
        own = folder / str(number)
        own.mkdir()
        yield makers[number % len(makers)](rng, own)


def _wrong_field(rng: random.Random, folder: Path) -> Case:
    kind, row, required = copy.deepcopy(rng.choice(_SHAPES))
    field = rng.choice([*required, rng.choice(_OPTIONAL)])
    value = rng.choice(_WRONG)
    path = _jsonl(folder, [row | {field: value}] * 2)
    reason = "" if field in required else "an optional field that is absent, or means nothing there"
    return Case(f"{kind}: {field}={value!r:.40}", _read(path, kind), reason)


def _missing_field(rng: random.Random, folder: Path) -> Case:
    kind, row, required = copy.deepcopy(rng.choice(_SHAPES))
    field = rng.choice(required)
    del row[field]
    return Case(f"{kind}: no {field} in {sorted(row)}", _read(_jsonl(folder, [row]), kind))


def _extra_field(rng: random.Random, folder: Path) -> Case:
    kind, row, _ = copy.deepcopy(rng.choice(_SHAPES))
    field, value = f"extra{rng.randrange(9)}", rng.choice(_WRONG[1:-1])
    path = _jsonl(folder, [row | {field: value}])

    def run() -> None:
        noted = _read(path, kind)()
        assert noted.unread[field] == 1, "a column that nobody reads is listed"

    return Case(f"{kind}: extra {value!r:.40}", run, "a column that nobody reads, listed")


def _damaged(rng: random.Random, folder: Path) -> Case:
    kind, row, _ = copy.deepcopy(rng.choice(_SHAPES))
    form = rng.choice(_FORMATS)
    path = _written(folder, form, [row | {"user": str(i)} for i in range(5)])
    damage = rng.choice(("cut", "flip", "nul", "high", "repeat", "glue", "empty", "half", "none"))
    files = [each for each in Path(path).rglob("*") if each.is_file()] or [Path(path)]
    data = bytearray(files[0].read_bytes())
    at = rng.randrange(len(data))
    if damage == "cut":
        data = data[:at]
    elif damage == "flip":
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif damage in ("nul", "high"):
        data[at:at] = b"\0" if damage == "nul" else b"\xff\xfe"
    elif damage == "repeat":
        data[at:at] = data[at // 2 : at]
    elif damage == "glue":
        data = data.replace(b"\n", b"")
    elif damage == "empty":
        data = bytearray()
    elif damage == "half":
        data = data[at:]
    files[0].write_bytes(data)
    reason = (
        "an intact file, or a drop of each row"
        if damage == "none"
        else "what is left of the file are rows that parse"
    )
    return Case(f"{form} {damage} at {at}: {kind}", _read(path, None), reason)


def _mapped(rng: random.Random, folder: Path) -> Case:
    kind, row, _ = copy.deepcopy(rng.choice(_SHAPES))
    fields = rng.sample(_FIELDS, rng.randint(1, 3))
    columns: Row = {field: rng.choice((*_PATHS, *row)) for field in fields}
    if "better" in columns and rng.random() < 0.5:
        columns["better"] = {"column": columns["better"], "first": rng.choice((1, "b", True))}
        columns["better"] |= {"second": rng.choice((0, "a", 1, None))}
    path = _jsonl(folder, [row] * 2)
    return Case(
        f"{kind}: columns {columns!r:.60}",
        _read(path, kind, columns),
        "the mapped columns hold what the fields ask for",
    )


def _read(path: str, kind: Kind | None, columns: Row | None = None) -> Callable[[], Noted]:
    def run() -> Noted:
        told = kind
        if told is None:
            told = kind_of_data(path, columns)
        else:
            with contextlib.suppress(DataError):
                kind_of_data(path, columns)
        noted = Noted()
        rows = list(read_examples(path, told, columns=columns, noted=noted))
        dropped = [row.reason for row in rows if isinstance(row, Rejected)]
        if len(dropped) == len(rows):
            raise EmptyDatasetError(f"no usable row: {dropped[:1]}", where=path)
        return noted

    return run


def _jsonl(folder: Path, rows: list[Row]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _written(folder: Path, form: str, rows: list[Row]) -> str:
    """The rows as a file of a format, or as a folder of files."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
        return str(folder / "rows.parquet")
    if form == "folder":
        (folder / "data").mkdir()
        for split in ("train", "test"):
            (folder / "data" / f"{split}.jsonl").write_bytes(lines)
        return str(folder / "data")
    content = {
        "jsonl": lines,
        "nameless": lines,
        "json": json.dumps(rows).encode(),
        "csv": _csv(rows).encode(),
        "txt": b"A line.\n\nAnother.\n" * 9,
        "jsonl.gz": gzip.compress(lines, mtime=0),
    }[form]
    path = folder / ("rows" if form == "nameless" else f"rows.{form}")
    path.write_bytes(content)
    return str(path)


def _csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()})
    return text.getvalue()

"""The cache of tokenised rows: equal to no cache, whatever happens to it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import Files, account, byte_tokenizer

from workers.data import files as files_module
from workers.data.files import FileSource
from workers.data.tokenize.data_sets import SetKind

MIB = 2**20
ROWS: dict[str, Any] = {
    "demonstrations": [{"prompt": f"p{i}", "completion": "c" * (1 + i)} for i in range(12)],
    "rankings": [
        {"prompt": f"q{i}", "completions": ["a", "b", "a"], "ranks": [1, 2, 1], "annotator": "x"}
        for i in range(12)
    ],
    "prompts": [{"messages": [{"role": "user", "content": f"m{i}"}]} for i in range(12)],
    "pretraining": [{"text": "t" * 30 + str(i)} for i in range(12)],
}
RENDERING = {"chat_template": "default"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("REHEARSAL_CACHE", str(folder))
    return folder


@pytest.fixture
def open_files(tmp_path: Path) -> Callable[..., FileSource]:
    made = Files(tmp_path, byte_tokenizer(tmp_path / "tokenizer"))

    def opened(
        cache_mib: int = 64, rendering: dict[str, Any] | None = None, **rows: Any
    ) -> FileSource:
        feeding = {"cache_mib": cache_mib}
        return made(
            prompt_limit=100,
            rendering=RENDERING | (rendering or {}),
            feeding=feeding,
            **rows or ROWS,
        )

    return opened


def content(source: FileSource) -> list[Any]:
    tables = [source._tables[kind].rows for kind in SetKind]
    columns = [getattr(rows, name) for rows in tables for name in type(rows).__dataclass_fields__]
    return [*columns, source.accounts]


def same(first: FileSource, second: FileSource) -> bool:
    for one, other in zip(content(first), content(second), strict=True):
        if isinstance(one, np.ndarray):
            if one.dtype != other.dtype or not np.array_equal(one, other):
                return False
        elif hasattr(one, "offsets"):
            if one.values.dtype != other.values.dtype or not (
                np.array_equal(one.values, other.values)
                and np.array_equal(one.offsets, other.offsets)
            ):
                return False
        elif one != other:
            return False
    return True


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read and tokenised."""
    names: list[str] = []
    original = files_module.read_examples

    def read(path: str, *arguments: Any, **options: Any) -> Any:
        names.append(Path(path).stem)
        return original(path, *arguments, **options)

    monkeypatch.setattr(files_module, "read_examples", read)
    return names


def test_kept_rows_are_those_that_were_read(
    cache: Path, open_files: Callable[..., FileSource], reads: list[str]
) -> None:
    plain = open_files(cache_mib=0)
    assert not cache.exists()
    first = open_files()
    assert len(reads) == 8
    second = open_files()
    assert len(reads) == 8
    assert same(plain, first)
    assert same(plain, second)
    assert len(list(cache.iterdir())) == 4
    assert cache.stat().st_mode & 0o777 == 0o700
    assert first.notes == second.notes == []


def test_what_rows_depend_on_names_them(
    cache: Path, open_files: Callable[..., FileSource], reads: list[str], tmp_path: Path
) -> None:
    prompts = {"prompts": ROWS["prompts"]}
    open_files(**prompts)
    for changed in (
        {"max_prompt_tokens": 99},
        {"max_completion_tokens": 7},
        {"train_on": "all"},
        {"prefix_characters": 5},
        {"find_pii": True},
    ):
        before = len(reads)
        open_files(rendering=changed, **prompts)
        assert len(reads) == before + 1, changed
    before = len(reads)
    open_files(rendering={"date": "2026-02-03", "embeddings": 10**6}, **prompts)
    assert len(reads) == before
    open_files(prompts=[*ROWS["prompts"], ROWS["prompts"][0]])
    assert len(reads) == before + 1
    tokenizer = tmp_path / "tokenizer" / "tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"note": 1}))
    open_files(**prompts)
    assert len(reads) == before + 2


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(path.read_bytes().replace(b"\x01", b"\x02", 1)),
        lambda path: path.write_bytes(os.urandom(500)),
        lambda path: (path.rename(path.parent / "real"), path.symlink_to("real")),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
)
def test_what_is_damaged_is_read_anew_and_told(
    cache: Path,
    open_files: Callable[..., FileSource],
    reads: list[str],
    harm: Callable[[Path], object],
) -> None:
    first = open_files(pretraining=ROWS["pretraining"])
    (entry,) = cache.iterdir()
    harm(entry)
    second = open_files(pretraining=ROWS["pretraining"])
    assert len(reads) == 2
    assert same(first, second)
    assert "read again" in second.notes[0]
    third = open_files(pretraining=ROWS["pretraining"])
    assert len(reads) == 2
    assert same(first, third)
    assert third.notes == []


def test_the_cache_may_be_deleted_at_any_time(
    cache: Path, open_files: Callable[..., FileSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    first = open_files()
    original = files_module.read_examples

    def read(path: str, *arguments: Any, **options: Any) -> Any:
        shutil.rmtree(cache, ignore_errors=True)
        return original(path, *arguments, **options)

    monkeypatch.setattr(files_module, "read_examples", read)
    shutil.rmtree(cache)
    second = open_files()
    assert same(first, second)


def test_entries_used_longest_ago_go_first(
    cache: Path, open_files: Callable[..., FileSource]
) -> None:
    open_files(cache_mib=1, pretraining=ROWS["pretraining"])
    (old,) = cache.iterdir()
    size = old.stat().st_size
    filler = cache / ("0" * 64 + ".rows")
    filler.write_bytes(bytes(MIB - size - 1))
    os.utime(filler, (1, 1))
    open_files(cache_mib=1, prompts=ROWS["prompts"])
    assert not filler.exists()
    assert old.exists()


def test_rows_larger_than_the_cache_are_not_kept(
    cache: Path, open_files: Callable[..., FileSource]
) -> None:
    rows = [{"text": chr(97 + i % 26) * 9000 + str(i)} for i in range(40)]
    source = open_files(cache_mib=1, pretraining=rows)
    assert list(cache.iterdir()) == []
    assert "over 1 MiB" in source.notes[0]


def test_a_folder_that_others_may_write_to_is_not_used(
    cache: Path, open_files: Callable[..., FileSource], tmp_path: Path
) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    source = open_files()
    assert "other users may write to it" in source.notes[0]
    assert list(cache.iterdir()) == []
    cache.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache.symlink_to(tmp_path / "elsewhere")
    assert "a link or a file" in open_files().notes[0]
    cache.unlink()
    cache.write_text("")
    assert "no rows are kept" in open_files().notes[0]


def test_a_set_that_fails_leaves_nothing(
    cache: Path, open_files: Callable[..., FileSource]
) -> None:
    from workers.errors import DataError

    with pytest.raises(DataError):
        open_files(prompts=[*ROWS["prompts"], {"prompt": 3}])
    assert list(cache.iterdir()) == []


def test_drops_and_counts_are_kept_with_the_rows(
    cache: Path, open_files: Callable[..., FileSource]
) -> None:
    rows = [*ROWS["demonstrations"], {"prompt": " ", "completion": "c"}]
    told = [account(open_files(demonstrations=rows), "demonstrations") for _ in range(2)]
    assert told[0] == told[1]
    assert told[1].dropped == {"empty prompt": 1}

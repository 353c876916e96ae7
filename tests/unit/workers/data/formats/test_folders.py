"""Folders of data files: what is read of them, and that nothing outside them is."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from workers.data.formats.readers import read_rows
from workers.errors import DataError

ROW = '{"prompt": "a"}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outside.jsonl").write_text('{"prompt": "secret"}\n')
    path = tmp_path / "set"
    path.mkdir()
    (path / "train.jsonl").write_text(ROW)
    return path


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        pytest.fail(f"a connection was opened: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def _card(folder: Path, configs: object) -> None:
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n# A set\n")


def prompts(path: Path, **options: str) -> list[object]:
    return [row.fields["prompt"] for row in read_rows(str(path), **options)]


def test_the_card_names_files_by_split_and_subset(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "one.jsonl").write_text('{"prompt": "b"}\n')
    (folder / "deep" / "two.jsonl").write_text('{"prompt": "c"}\n')
    parts = [
        {"split": "train", "path": "deep/o*.jsonl"},
        {"split": "test", "path": ["deep/two.jsonl"]},
    ]
    _card(
        folder,
        [
            {"config_name": "default", "data_files": "train.jsonl"},
            {"config_name": "parts", "data_files": parts},
            {"config_name": "placed", "data_dir": "deep", "data_files": "two.jsonl"},
        ],
    )
    assert prompts(folder) == ["a"]
    assert prompts(folder, subset="parts") == ["b"]
    assert prompts(folder, subset="parts", split="test") == ["c"]
    assert prompts(folder, subset="placed") == ["c"]
    with pytest.raises(DataError, match="no subset 'other'") as caught:
        prompts(folder, subset="other")
    assert "default, parts, placed" in caught.value.fix


@pytest.mark.parametrize(
    "place",
    [
        "../outside.jsonl",
        "deep/../../outside.jsonl",
        "/etc/passwd",
        "~/outside.jsonl",
        "https://127.0.0.1:9/rows.jsonl",
        "hf://datasets/owner/name/rows.jsonl",
        "file:///etc/passwd",
        "zip://rows.jsonl::https://127.0.0.1:9/rows.zip",
    ],
)
def test_a_card_that_names_a_place_outside_the_folder_is_refused(folder: Path, place: str) -> None:
    for config in (
        {"config_name": "x", "data_files": place},
        {"config_name": "x", "data_files": [{"split": "train", "path": ["train.jsonl", place]}]},
        {"config_name": "x", "data_dir": place},
    ):
        _card(folder, [config])
        with pytest.raises(DataError, match="names a place outside the folder"):
            prompts(folder)


@pytest.mark.parametrize(
    "card",
    [
        "---\nconfigs: [\n---\n",
        "---\nconfigs: 3\n---\n",
        "---\nconfigs:\n- 3\n---\n",
        "---\nconfigs:\n- data_files: 3\n---\n",
        "---\nconfigs:\n- data_files: {train: 3}\n---\n",
        "---\nconfigs:\n- data_files: [{split: train}]\n---\n",
        "---\nconfigs:\n- data_files: absent.jsonl\n---\n",
        "---\nconfigs: !!python/object/apply:os.system ['true']\n---\n",
        f"---\nconfigs: {'[' * 5000}\n---\n",
    ],
)
def test_a_card_that_cannot_be_read_is_a_typed_error(folder: Path, card: str) -> None:
    (folder / "README.md").write_text(card)
    with pytest.raises(DataError, match=r"card|data files"):
        prompts(folder)


@pytest.mark.parametrize("target", ["../outside.jsonl", "/etc/hostname", "..", "absent.jsonl"])
def test_a_link_that_leads_out_of_the_folder_is_refused(folder: Path, target: str) -> None:
    (folder / "more.jsonl").symlink_to(target)
    with pytest.raises(DataError, match=r"leads (out of it|nowhere)") as caught:
        prompts(folder)
    assert caught.value.where == str(folder / "more.jsonl")


def test_links_within_the_folder_and_within_a_download_are_followed(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "train.jsonl").rename(folder / ".kept")
    (folder / "train.jsonl").symlink_to(".kept")
    assert prompts(folder) == ["a"]
    (tmp_path / "hub" / "blobs").mkdir(parents=True)
    (tmp_path / "hub" / "blobs" / "f00").write_text(ROW)
    snapshot = tmp_path / "hub" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "train.jsonl").symlink_to("../../blobs/f00")
    assert prompts(snapshot) == ["a"]


def test_a_folder_of_one_format_and_notes(folder: Path) -> None:
    (folder / "LICENSE.txt").write_text("words\n")
    (folder / "train.jsonl").rename(folder / "rows [1].jsonl")
    assert prompts(folder.rename(folder.parent / "a [b] *")) == ["a"]


def test_a_folder_of_several_formats_is_refused(folder: Path) -> None:
    (folder / "train.csv").write_text("prompt\nb\n")
    with pytest.raises(DataError, match="several formats: CSV, JSON"):
        prompts(folder)


def _saved(folder: Path, **features: object) -> None:
    import datasets

    kept = datasets.Dataset.from_dict({"prompt": ["a"], **{name: [None] for name in features}})
    kept.save_to_disk(folder)


def test_a_saved_set_that_names_files_outside_the_folder_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path / "set")
    state = tmp_path / "set" / "state.json"
    kept = json.loads(state.read_text())
    for name in ("../other.arrow", "/etc/passwd", "..", ""):
        state.write_text(json.dumps(kept | {"_data_files": [{"filename": name}]}))
        with pytest.raises(DataError, match="names a file outside the folder"):
            prompts(tmp_path / "set")
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["../other"]}')
    with pytest.raises(DataError, match="names a file outside the folder"):
        prompts(tmp_path / "set")


@pytest.mark.parametrize(
    ("broken", "content"),
    [
        *(("state.json", content) for content in ("", "[]", "3", '{"_data_files": 3}')),
        *(("dataset_info.json", content) for content in ("", "[]", "3", '{"features": {"a": 3}}')),
    ],
)
def test_a_saved_set_whose_description_is_damaged_is_a_typed_error(
    tmp_path: Path, broken: str, content: str
) -> None:
    _saved(tmp_path / "set")
    (tmp_path / "set" / broken).write_text(content)
    with pytest.raises(DataError):
        prompts(tmp_path / "set")


def test_pictures_of_a_saved_set_are_not_opened(tmp_path: Path) -> None:
    import datasets

    place = str(tmp_path / "absent.png")
    rows = {"prompt": ["a"], "image": [{"bytes": b"", "path": place}]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "set")
    described = tmp_path / "set" / "dataset_info.json"
    info = json.loads(described.read_text())
    info["features"]["image"] = {"_type": "Image"}
    described.write_text(json.dumps(info))
    assert [row.fields for row in read_rows(str(tmp_path / "set"))] == [
        {"prompt": "a", "image": {"bytes": b"", "path": place}}
    ]


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "what"),
    [(os.mkfifo, "a pipe"), (_socket, "a socket"), (Path.mkdir, "a folder")],
)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "txt", "parquet", ""])
def test_only_regular_files_are_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
    what: str,
    suffix: str,
) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets must be short
    path = Path(f"d.{suffix}")
    make(path)
    declared = {"txt": "text", "tsv": "csv", "": "jsonl"}.get(suffix, suffix)
    with pytest.raises(DataError, match=f"it is {what}, not a file"):
        list(read_rows(str(path), format=declared))


def test_devices_are_not_read() -> None:
    for format_ in ("auto", "jsonl", "text", "parquet"):
        with pytest.raises(DataError, match="it is a device, not a file"):
            list(read_rows("/dev/zero", format=format_))

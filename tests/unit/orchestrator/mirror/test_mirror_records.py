"""Records in a mirror are refused unless they name only what a copy of this run holds."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.mirror.records import Copy, Stored, copy_of, encode
from orchestrator.run_files.sealed_json import seal, unsealed
from workers.errors import BrokenCheckpointError

RUN, NAME = "0123456789abcdef" * 2, "000007-ppo-12"
GOOD = Stored(5, "ab" * 32, f"copies/{NAME}/metrics.jsonl")


def refused(path: str = "metrics.jsonl", **changes: Any) -> str:
    """What is said of a record with one file, some fields of which are changed."""
    plain = unsealed(encode(Copy(RUN, NAME, {path: GOOD})))
    for key, value in changes.items():
        if key in ("bytes", "sha256", "object"):
            plain["files"][path][key] = value
        else:
            plain[key] = value
    with pytest.raises(BrokenCheckpointError) as caught:
        copy_of(seal(plain).encode(), "s3://bucket/x", RUN, NAME)
    return caught.value.what


def test_a_record_is_read_as_it_was_written() -> None:
    copy = Copy(RUN, NAME, {"metrics.jsonl": GOOD, "checkpoints/sft/model.safetensors": GOOD})
    assert copy_of(encode(copy), "x", RUN, NAME) == copy
    assert copy.total == 10


@pytest.mark.parametrize(
    "path",
    [
        "../metrics.jsonl", "/etc/passwd", "samples/../../x", "samples//x", "samples/./x", "",
        "samples/a\\b", "samples/a\0b", "checkpoints/sft", "run.log", ".lock", "mirror.json",
        "state/000008-ppo-13/progress.json", "state/000007-ppo-12/", "logs/x", "samples/",
        "samples/" + "x" * 2000, "file:///samples/x", "metrics.jsonl\n",
    ],
)  # fmt: skip
def test_a_path_outside_of_its_places_is_refused(path: str) -> None:
    assert "names the file" in refused(path)


@pytest.mark.parametrize(
    "name",
    [
        "../other/metrics.jsonl", "/etc/passwd", "copies/000008-ppo-13/x", "models/../../x",
        "copies/000007-ppo-12/complete.json", "copies/000007-ppo-12/begun.json", "identity.json",
        "models//x", "s3://other/models/x", "",
    ],
)  # fmt: skip
def test_an_object_of_another_copy_is_refused(name: str) -> None:
    assert "names the object" in refused(object=name)


@pytest.mark.parametrize(
    "changes",
    [{"bytes": -1}, {"bytes": 1 << 50}, {"sha256": "ab"}, {"sha256": "AB" * 32}],
)
def test_sizes_and_hashes_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    assert "cannot be" in refused(**changes)


def test_other_runs_checkpoints_versions_and_types_are_refused() -> None:
    assert "it is of run" in refused(run="f" * 32)
    assert "it is of run" in refused(name="000008-ppo-12")
    assert "schema 2" in refused(schema=2)
    assert "lists 0 files" in refused(files={})
    assert "cannot be trusted" in refused(files=["metrics.jsonl"])
    assert "cannot be trusted" in refused(bytes="5")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"run": 1}'])
def test_bytes_that_are_no_sealed_record_are_refused(data: bytes) -> None:
    with pytest.raises(BrokenCheckpointError, match="cannot be trusted"):
        copy_of(data, "x", RUN, NAME)


def test_a_changed_bit_is_refused() -> None:
    data = encode(Copy(RUN, NAME, {"metrics.jsonl": GOOD}))
    with pytest.raises(BrokenCheckpointError, match="altered"):
        copy_of(data.replace(b'"bytes": 5', b'"bytes": 6'), "x", RUN, NAME)

"""A transport from outside our packages: the example of docs/extending.md, by its import path."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from workers.errors import ChecksumError, WeightSyncError
from workers.weights.packing import describe, make_offer
from workers.weights.transfer import WeightReceiver, WeightSender
from workers.weights.transport import Link, Transport

DOCS = Path(__file__).parents[4] / "docs/extending.md"
LINK = Link(torch.device("cpu"), seconds=1.0)
NAMED = [(f"layers.{n}.weight", torch.full((8, 5), float(n + 1))) for n in range(4)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the module of the example, as a run's folder has it."""
    section = DOCS.read_text().partition("## A new weight transport")[2]
    source = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert source is not None
    (tmp_path / "weights_by_file.py").write_text(source[1])
    monkeypatch.setenv("WEIGHTS_FOLDER", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("weights_by_file", None)


def test_a_users_transport_carries_weights_and_refuses_a_corrupted_byte(place: Path) -> None:
    sender = WeightSender(LINK, str(place))
    receiver = WeightReceiver(LINK, str(place))
    plan = make_offer(3, describe(NAMED), "weights_by_file:FILE", bucket_bytes=512)
    offer = sender.send(plan, ([pair] for pair in NAMED))
    file = place / f"weights-{os.getpid()}"
    assert offer.location == str(file)
    got = [pair for bucket in receiver.receive(offer) for pair in bucket]
    assert [name for name, _ in got] == [name for name, _ in NAMED]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(got, NAMED, strict=True))
    assert receiver.checksum == offer.checksum
    assert offer.checksum == WeightSender(LINK).send(
        make_offer(3, describe(NAMED), "shm", bucket_bytes=512), [NAMED]
    ).checksum  # fmt: skip

    sent = bytearray(file.read_bytes())
    sent[200] ^= 1
    file.write_bytes(sent)
    with pytest.raises(ChecksumError, match="version 3"):
        receiver.receive(offer)
    file.write_bytes(sent[:-8])
    with pytest.raises(WeightSyncError, match="for a bucket of"):
        receiver.receive(offer)
    sender.close()
    with pytest.raises(WeightSyncError, match="no weights"):
        receiver.receive(offer)


@pytest.mark.parametrize("wrong", [{"sender": None}, {"receiver": 3}, {"one_sided": "no"}])
def test_a_transport_with_a_field_of_another_type_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(wrong))):
        Transport(**{"sender": dict, "receiver": dict} | wrong)

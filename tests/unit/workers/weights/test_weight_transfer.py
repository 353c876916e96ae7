from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from workers.errors import ChecksumError, WeightSyncError
from workers.records.weights import GroupAddress, WeightOffer
from workers.weights import process_group
from workers.weights.packing import describe, make_offer
from workers.weights.transfer import WeightReceiver, WeightSender
from workers.weights.transport import KIND, Link, find_transport

SHAPES = {
    "model.embed_tokens.weight": (50, 16),
    "model.layers.0.mlp.weight": (16, 33),
    "model.layers.1.mlp.weight": (16, 33),
    "model.norm.weight": (16,),
}
BUCKET = 2048  # bytes: several buckets for these shapes
CPU = torch.device("cpu")
LINK = Link(CPU, seconds=1.0)


def tensors(seed: int) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(n, torch.randn(s, generator=generator)) for n, s in SHAPES.items()]


def one_by_one(seed: int) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """A sender that frees each tensor before it gathers the next, as ZeRO-3 does."""
    for name, tensor in tensors(seed):
        yield [(name, tensor)]
        tensor.fill_(float("nan"))


def assert_received(got: list[tuple[str, torch.Tensor]], seed: int) -> None:
    assert [n for n, _ in got] == list(SHAPES)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(got, tensors(seed), strict=True))


def flat(buckets: Iterator[list[tuple[str, torch.Tensor]]]) -> list[tuple[str, torch.Tensor]]:
    return [pair for bucket in buckets for pair in bucket]


def offered(version: int, transport: str, dtype: torch.dtype | None = None) -> WeightOffer:
    return make_offer(version, describe(tensors(version), dtype), transport, BUCKET)


def publish(sender: WeightSender, version: int) -> WeightOffer:
    return sender.send(offered(version, "shm"), one_by_one(version))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_memory_round_trip_reuses_its_mapping(dtype: torch.dtype) -> None:
    sender, receiver, offers = WeightSender(LINK), WeightReceiver(LINK), []
    for seed in range(3):
        offer = sender.send(offered(seed, "shm", dtype), one_by_one(seed))
        buckets = receiver.receive(offer)
        offers.append(offer)
        assert receiver.checksum == offer.checksum  # verified before any of it is used
        for (name, got), (_, sent) in zip(flat(buckets), tensors(seed), strict=True):
            assert got.dtype == dtype, name
            assert torch.equal(got, sent.to(dtype))
    assert len({o.location for o in offers}) == 1
    assert len({o.checksum for o in offers}) == 3


def test_shared_memory_refuses_changed_bytes_and_another_sync() -> None:
    sender, receiver = WeightSender(LINK), WeightReceiver(LINK)
    first = publish(sender, 1)
    receiver.receive(first)
    publish(sender, 2)
    with pytest.raises(ChecksumError, match="version 1"):
        receiver.receive(first)


def test_shared_memory_of_a_closed_sender_is_gone() -> None:
    sender = WeightSender(LINK)
    offer = publish(sender, 1)
    assert offer.location.startswith(f"/proc/{os.getpid()}/")  # a killed process leaves nothing
    sender.close()
    with pytest.raises(WeightSyncError, match="shared buffer"):
        WeightReceiver(LINK).receive(offer)
    assert not Path(offer.location).exists()


def test_shared_memory_sender_can_grow() -> None:
    sender, receiver = WeightSender(LINK), WeightReceiver(LINK)
    receiver.receive(publish(sender, 1))
    larger = [("w", torch.randn(100_000))]
    offer = sender.send(make_offer(2, describe(larger), "shm"), [larger])
    assert torch.equal(flat(receiver.receive(offer))[0][1], larger[0][1])


def test_a_tensor_that_was_not_offered_is_named() -> None:
    offer = make_offer(1, describe(tensors(1))[:-1], "shm")
    with pytest.raises(WeightSyncError, match=r"norm"):
        WeightSender(LINK).send(offer, one_by_one(1))


def free_address(world_size: int) -> GroupAddress:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return GroupAddress("127.0.0.1", probe.getsockname()[1], world_size)


def in_thread(work: Callable[[], object]) -> Callable[[], object]:
    """Start `work` beside the caller; the returned function gives its result or its error."""
    result: list[object] = []

    def run() -> None:
        try:
            result.append(work())
        except WeightSyncError as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def answer() -> object:
        thread.join(30)
        return result[0]

    return answer


def _receive_in_process(address: GroupAddress, rank: int, offers: Any, answers: Any) -> None:
    receiver = WeightReceiver(replace(LINK, seconds=20))
    receiver.connect(address, rank)
    while (offer := offers.get(timeout=20)) is not None:
        got = [(n, t.clone()) for bucket in receiver.receive(offer) for n, t in bucket]
        answers.put((receiver.checksum, {n: t.numpy() for n, t in got}))


def test_group_delivers_to_another_process_what_shared_memory_does() -> None:
    spawn = multiprocessing.get_context("spawn")
    address, answers, queue = free_address(2), spawn.Queue(), spawn.Queue()
    given = (address, 1, queue, answers)
    child = spawn.Process(target=_receive_in_process, args=given, daemon=True)
    child.start()
    sender = WeightSender(replace(LINK, seconds=30))
    sender.connect(address)
    for seed in (1, 2):
        queue.put(offered(seed, "gloo"))
        sent = sender.send(offered(seed, "gloo"), one_by_one(seed))
        expected = publish(sender, seed)
        assert (sent.version, sent.checksum) == (seed, expected.checksum)
        assert sent.nbytes == expected.nbytes
        checksum, arrays = answers.get(timeout=20)
        assert checksum == sent.checksum
        assert_received([(n, torch.from_numpy(a)) for n, a in arrays.items()], seed)
    queue.put(None)
    child.join(10)
    assert child.exitcode == 0


Pair = tuple[WeightSender, WeightReceiver]


def connected(seconds: float) -> Pair:
    link, address = replace(LINK, seconds=seconds), free_address(2)
    sender, receiver = WeightSender(link), WeightReceiver(link)
    joining = in_thread(lambda: receiver.connect(address, 1))
    sender.connect(address)
    assert joining() is None
    return sender, receiver


@pytest.fixture
def pair() -> Pair:
    return connected(1)


def test_group_refuses_another_offer(pair: Pair) -> None:
    sender, receiver = pair
    answer = in_thread(lambda: list(receiver.receive(replace(offered(1, "gloo"), version=7))))
    with pytest.raises(WeightSyncError, match="within 1 s"):  # the receiver has left
        sender.send(offered(1, "gloo"), one_by_one(1))
    assert "announces version 1" in str(answer())


def test_group_notices_bytes_changed_on_the_way(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, receiver = pair
    receive = process_group.GroupReceiver.receive

    def flip(end: Any, bucket: Any) -> torch.Tensor:
        packed = receive(end, bucket)
        packed[5] ^= 1
        return packed

    monkeypatch.setattr(process_group.GroupReceiver, "receive", flip)
    answer = in_thread(lambda: list(receiver.receive(offered(1, "gloo"))))
    sender.send(offered(1, "gloo"), one_by_one(1))
    assert isinstance(answer(), ChecksumError)
    assert receiver.checksum == ""


def test_group_names_a_silent_peer_within_the_deadline(pair: Pair) -> None:
    _, receiver = pair
    with pytest.raises(WeightSyncError, match="within 1 s"):
        list(receiver.receive(offered(1, "gloo")))


def test_a_group_that_was_left_holds_no_socket_and_no_thread() -> None:
    gc.collect()  # groups that other tests left behind would end in the middle of this one
    held = []
    for _ in range(4):
        sender, receiver = connected(20)
        sender.close()
        receiver.close()
        with pytest.raises(WeightSyncError, match="no transfer group"):
            sender.send(offered(1, "gloo"), one_by_one(1))
        held.append([len(list(Path(f"/proc/self/{what}").iterdir())) for what in ("fd", "task")])
    assert held[1] == held[2] == held[3]  # the first starts what torch keeps for the process


def test_group_that_nobody_joins_fails_within_the_deadline() -> None:
    with pytest.raises(WeightSyncError, match="within 1 s"):
        WeightSender(LINK).connect(free_address(2))


def test_a_new_group_takes_the_place_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class End:
        def __init__(self, _make: Any, _on_gpu: bool, link: Link) -> None:
            assert link.address is not None
            self.name = f"{link.address.host} as {link.rank} on {link.device}"
            events.append(f"open {self.name}")

        def close(self) -> None:
            events.append(f"close {self.name}")

    monkeypatch.setattr(process_group, "_Group", End)
    side = WeightReceiver(LINK)
    for host in ("a", "b"):
        side.connect(GroupAddress(host, 1, 3), 2)
    side.close()
    assert events == ["open a as 2 on cpu", "close a as 2 on cpu", "open b as 2 on cpu",
                      "close b as 2 on cpu"]  # fmt: skip


def test_the_properties_of_each_transport() -> None:
    named = {name: find_transport(name) for name in KIND.names()}
    assert [name for name, each in named.items() if each.one_sided] == ["shm"]
    assert [name for name, each in named.items() if each.spans_nodes] == ["gloo", "nccl"]
    assert [name for name, each in named.items() if each.needs_gpu] == ["nccl"]

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from workers.errors import ChecksumError, WeightSyncError
from workers.records.weights import GroupAddress, WeightOffer, WeightReceipt
from workers.weights.transfer import (
    GroupReceiver,
    GroupSender,
    SharedMemoryReceiver,
    SharedMemorySender,
    describe,
    make_offer,
)

SHAPES = {
    "model.embed_tokens.weight": (50, 16),
    "model.layers.0.mlp.weight": (16, 33),
    "model.layers.1.mlp.weight": (16, 33),
    "model.norm.weight": (16,),
}
BUCKET = 2048  # bytes: several buckets for these shapes


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


def flat(buckets: list[list[tuple[str, torch.Tensor]]]) -> list[tuple[str, torch.Tensor]]:
    return [pair for bucket in buckets for pair in bucket]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_memory_round_trip_reuses_its_mapping(dtype: torch.dtype) -> None:
    sender, receiver = SharedMemorySender(BUCKET), SharedMemoryReceiver()
    metas = describe(tensors(0), dtype)
    offers = []
    for seed in range(3):
        offer = sender.publish(seed, metas, one_by_one(seed))
        buckets, checksum = receiver.receive(offer)
        offers.append(offer)
        assert checksum == offer.checksum
        for (name, got), (_, sent) in zip(flat(buckets), tensors(seed), strict=True):
            assert got.dtype == dtype, name
            assert torch.equal(got, sent.to(dtype))
    assert len({o.location for o in offers}) == 1
    assert len({o.checksum for o in offers}) == 3


def test_shared_memory_refuses_changed_bytes_and_another_sync() -> None:
    sender, receiver = SharedMemorySender(BUCKET), SharedMemoryReceiver()
    first = sender.publish(1, describe(tensors(1)), one_by_one(1))
    receiver.receive(first)
    sender.publish(2, describe(tensors(2)), one_by_one(2))
    with pytest.raises(ChecksumError, match="version 1"):
        receiver.receive(first)


def test_shared_memory_of_a_closed_sender_is_gone() -> None:
    sender = SharedMemorySender(BUCKET)
    offer = sender.publish(1, describe(tensors(1)), one_by_one(1))
    assert offer.location.startswith(f"/proc/{os.getpid()}/")  # a killed process leaves nothing
    sender.close()
    with pytest.raises(WeightSyncError, match="shared buffer"):
        SharedMemoryReceiver().receive(offer)
    assert not Path(offer.location).exists()


def test_shared_memory_sender_can_grow() -> None:
    sender, receiver = SharedMemorySender(BUCKET), SharedMemoryReceiver()
    receiver.receive(sender.publish(1, describe(tensors(1)), one_by_one(1)))
    larger = [("w", torch.randn(100_000))]
    buckets, _ = receiver.receive(sender.publish(2, describe(larger), [larger]))
    assert torch.equal(buckets[0][0][1], larger[0][1])


def test_shared_memory_names_a_tensor_that_was_not_offered() -> None:
    sender = SharedMemorySender(BUCKET)
    with pytest.raises(WeightSyncError, match=r"norm"):
        sender.publish(1, describe(tensors(1))[:-1], one_by_one(1))


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


def _receive_in_process(address: GroupAddress, rank: int, offers, answers) -> None:
    receiver = GroupReceiver(address, rank, torch.device("cpu"), seconds=20)
    while (offer := offers.get(timeout=20)) is not None:
        got = [(n, t.clone()) for bucket in receiver.receive(offer) for n, t in bucket]
        answers.put((receiver.checksum, {n: t.numpy() for n, t in got}))


def test_group_delivers_to_another_process_what_shared_memory_does() -> None:
    spawn = multiprocessing.get_context("spawn")
    address, answers = free_address(2), spawn.Queue()
    queues = [spawn.Queue()]
    children = [
        spawn.Process(target=_receive_in_process, args=(address, i + 1, q, answers), daemon=True)
        for i, q in enumerate(queues)
    ]
    for child in children:
        child.start()
    sender = GroupSender(address, torch.device("cpu"), seconds=30)
    for seed in (1, 2):
        offer = make_offer(seed, describe(tensors(seed)), "gloo", BUCKET)
        for queue in queues:
            queue.put(offer)
        sent = sender.send(offer, one_by_one(seed))
        expected = SharedMemorySender(BUCKET).publish(
            seed, describe(tensors(seed)), one_by_one(seed)
        )
        assert (sent.version, sent.checksum, sent.nbytes) == (
            seed,
            expected.checksum,
            expected.nbytes,
        )
        for _ in queues:
            checksum, arrays = answers.get(timeout=20)
            assert checksum == sent.checksum
            assert_received([(n, torch.from_numpy(a)) for n, a in arrays.items()], seed)
    for queue, child in zip(queues, children, strict=True):
        queue.put(None)
        child.join(10)
        assert child.exitcode == 0


@pytest.fixture
def pair() -> tuple[GroupSender, GroupReceiver]:
    address, cpu = free_address(2), torch.device("cpu")
    answer = in_thread(lambda: GroupReceiver(address, 1, cpu, seconds=1))
    sender = GroupSender(address, cpu, seconds=1)
    receiver = answer()
    assert isinstance(receiver, GroupReceiver)
    return sender, receiver


def _offer(version: int) -> WeightOffer:
    return make_offer(version, describe(tensors(version)), "gloo", BUCKET)


def test_group_refuses_another_offer(pair: tuple[GroupSender, GroupReceiver]) -> None:
    sender, receiver = pair
    answer = in_thread(lambda: list(receiver.receive(replace(_offer(1), version=7))))
    with pytest.raises(WeightSyncError, match="within 1 s"):  # the receiver has left
        sender.send(_offer(1), one_by_one(1))
    assert "announces version 1" in str(answer())


def test_group_notices_bytes_changed_on_the_way(
    pair: tuple[GroupSender, GroupReceiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, receiver = pair

    def corrupted() -> list[object]:
        return list(receiver.receive(_offer(1)))

    broadcast = receiver._group.broadcast

    def flip(tensor: torch.Tensor) -> None:
        broadcast(tensor)
        if tensor.dtype == torch.uint8:
            tensor[5] ^= 1

    monkeypatch.setattr(receiver._group, "broadcast", flip)
    answer = in_thread(corrupted)
    sent = sender.send(_offer(1), one_by_one(1))
    assert isinstance(sent, WeightReceipt)
    assert isinstance(answer(), ChecksumError)


def test_group_names_a_silent_peer_within_the_deadline(
    pair: tuple[GroupSender, GroupReceiver],
) -> None:
    _, receiver = pair
    with pytest.raises(WeightSyncError, match="within 1 s"):
        list(receiver.receive(_offer(1)))


def test_a_group_that_was_left_holds_no_socket_and_no_thread() -> None:
    device, held = torch.device("cpu"), []
    for _ in range(4):
        address = free_address(2)
        joining = in_thread(lambda to=address: GroupReceiver(to, 1, device, seconds=20))
        sender = GroupSender(address, device, seconds=20)
        receiver = joining()
        assert isinstance(receiver, GroupReceiver)
        sender.close()
        receiver.close()
        with pytest.raises(WeightSyncError, match="group was left"):
            sender.send(make_offer(1, describe(tensors(1)), "gloo"), one_by_one(1))
        held.append([len(list(Path(f"/proc/self/{what}").iterdir())) for what in ("fd", "task")])
    assert held[1] == held[2] == held[3]  # the first starts what torch keeps for the process


def test_group_that_nobody_joins_fails_within_the_deadline() -> None:
    with pytest.raises(WeightSyncError, match="within 1 s"):
        GroupSender(free_address(2), torch.device("cpu"), seconds=1)

"""Checks of weights on their way: checksums of GPU memory, and publishing to shared memory."""

from __future__ import annotations

import time

import torch

from benchmarks.gpu.checks import Bench, Check, Figures, require
from benchmarks.gpu.samples import SECONDS, synchronize
from workers.weights.packing import NamedTensors, describe, make_offer
from workers.weights.transfer import WeightReceiver, WeightSender
from workers.weights.transport import Link

_DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int8, torch.uint8, torch.float8_e4m3fn,
)  # fmt: skip


def check_checksums(bench: Bench) -> Figures:
    """Weights on the device are packed into the host's bytes, with the same checksum."""
    generator = torch.Generator().manual_seed(0)
    for dtype in _DTYPES:
        # Sizes that end inside a row of the checksum's matrix, and inside a cache line.
        shapes = [(3, 5), (1 << 18,), (1023, 257), (1,), (65, 1024)]
        host = [(f"layers.{i}.w", _drawn(size, dtype, generator)) for i, size in enumerate(shapes)]
        there = [(name, tensor.to(bench.device)) for name, tensor in host]
        of_host, of_device = (_published(weights) for weights in (host, there))
        require(of_host == of_device, f"{dtype}: checksum {of_device} of the device's weights is "
                f"not that of the host's, {of_host}")  # fmt: skip
    return {"dtypes": len(_DTYPES)}


def _drawn(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    whole = torch.randint(-100, 100, shape, generator=generator)
    return whole.to(dtype) if dtype.is_floating_point else whole.abs().to(dtype)


def _published(weights: NamedTensors) -> str:
    """The checksum of a whole transfer through shared memory, which the receiver computes again."""
    link = Link(torch.device("cpu"), SECONDS)
    sender, receiver = WeightSender(link), WeightReceiver(link)
    sent = sender.send(make_offer(1, describe(weights), "shm", 1 << 20), [weights])
    for bucket in receiver.receive(sent):
        for name, tensor in bucket:
            wanted = dict(weights)[name].cpu()
            same = torch.equal(tensor.view(torch.uint8), wanted.view(torch.uint8))
            require(same, f"{name} {wanted.dtype} arrived with other bytes")
    sender.close()
    return sent.checksum


def check_publishing(bench: Bench) -> Figures:
    """How long do weights take to shared memory, beside a copy to pinned memory?"""
    nbytes = (8 << 20) if bench.quick else 2 << 30
    layers = 32
    weights = [
        (f"layers.{i}.w", torch.ones(nbytes // layers // 2, dtype=torch.bfloat16,
                                     device=bench.device))
        for i in range(layers)
    ]  # fmt: skip
    link = Link(torch.device("cpu"), SECONDS)
    sender, receiver = WeightSender(link), WeightReceiver(link)
    offer = make_offer(1, describe(weights), "shm")

    def publish() -> float:
        synchronize(bench)
        began = time.perf_counter()
        sender.send(offer, [weights])
        return time.perf_counter() - began

    first = publish()  # maps the pages
    seconds = min(publish() for _ in range(2))
    began = time.perf_counter()
    receiver.receive(sender.send(offer, [weights]))
    both = time.perf_counter() - began
    sender.close()
    gb = nbytes / 1e9
    return {
        "gb": gb,
        "first_seconds": first,
        "publish_gb_per_s": gb / seconds,
        "publish_and_verify_gb_per_s": gb / both,
        "plain_copy_gb_per_s": gb / _copy(bench, weights, pinned=False),
        "pinned_copy_gb_per_s": gb / _copy(bench, weights, pinned=bench.cuda),
    }


def _copy(bench: Bench, weights: NamedTensors, *, pinned: bool) -> float:
    """Seconds of the same bytes into host memory that is mapped already."""
    targets = [torch.zeros_like(t, device="cpu", pin_memory=pinned) for _, t in weights]
    best = float("inf")
    for _ in range(2):
        synchronize(bench)
        began = time.perf_counter()
        for target, (_, tensor) in zip(targets, weights, strict=True):
            target.copy_(tensor, non_blocking=pinned)
        synchronize(bench)
        best = min(best, time.perf_counter() - began)
    return best


CHECKS = [
    Check("checksums", check_checksums, 60.0),
    Check("publishing to shared memory", check_publishing, 90.0),
]

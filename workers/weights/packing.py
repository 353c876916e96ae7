"""Packing of full weights into buckets of whole layers, and their checksum.

Sender and receiver derive the same buckets from a `WeightOffer`, so only the bytes are sent. The
checksum depends on names, dtypes, shapes, bytes and their order, not on the transport.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workers.errors import WeightSyncError
from workers.records.arrays import IntArray
from workers.records.weights import TensorMeta, WeightOffer

NamedTensor = tuple[str, torch.Tensor]
NamedTensors = list[NamedTensor]

BUCKET_BYTES = 64 << 20
_ALIGNMENT = 64  # bytes: a cache line, and a multiple of every element size
_COLUMNS = 1024  # int64 words per row of the checksum's matrix
_BLOCK_ROWS = 256  # 2 MiB: small enough to be summed in the cache, large enough for few calls
_COPY_BYTES = 8 * _COLUMNS * _BLOCK_ROWS


@dataclass(frozen=True, slots=True)
class Slot:
    """The position of one tensor in its bucket."""

    meta: TensorMeta
    offset: int  # bytes from the start of the bucket
    nbytes: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """Whole layers packed end to end."""

    slots: tuple[Slot, ...]
    nbytes: int  # padding included
    start: int  # bytes from the start of the first bucket


def layer_of(name: str) -> str:
    """Name of the layer that a weight belongs to: up to its first number, or the name itself."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return name


def describe(tensors: Iterable[NamedTensor], dtype: torch.dtype | None = None) -> list[TensorMeta]:
    """Metas of named tensors as they will be sent; `dtype` overrides their dtypes."""
    return [TensorMeta(n, dtype_name(dtype or t.dtype), tuple(t.shape)) for n, t in tensors]


def dtype_name(dtype: torch.dtype) -> str:
    """Name without the module, e.g. "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def plan_buckets(metas: Sequence[TensorMeta], bucket_bytes: int = BUCKET_BYTES) -> list[Bucket]:
    """Pack tensors, in order, into buckets of at most `bucket_bytes`, never splitting a layer.

    Layers stay whole so that a receiver can reuse its buffer for the next bucket: engines that fuse
    weights (query, key and value in one matrix) keep the parts until the layer is complete. A layer
    larger than `bucket_bytes` is a bucket by itself.
    """
    buckets: list[Bucket] = []
    slots: list[Slot] = []
    start = offset = 0
    for layer in _layers(metas):
        size = sum(_aligned(_nbytes(m)) for m in layer)
        if slots and offset + size > bucket_bytes:
            buckets.append(Bucket(tuple(slots), offset, start))
            start, offset, slots = start + offset, 0, []
        for meta in layer:
            slots.append(Slot(meta, offset, _nbytes(meta)))
            offset += _aligned(_nbytes(meta))
    if slots:
        buckets.append(Bucket(tuple(slots), offset, start))
    return buckets


def _layers(metas: Sequence[TensorMeta]) -> list[list[TensorMeta]]:
    layers: list[list[TensorMeta]] = []
    for meta in metas:
        if not layers or layer_of(layers[-1][0].name) != layer_of(meta.name):
            layers.append([])
        layers[-1].append(meta)
    return layers


def _nbytes(meta: TensorMeta) -> int:
    return math.prod(meta.shape) * _dtype(meta).itemsize


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _dtype(meta: TensorMeta) -> torch.dtype:
    dtype = getattr(torch, meta.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise WeightSyncError(f"unknown dtype {meta.dtype!r}", where=f"weight {meta.name}")
    return dtype


def bucket_views(buffer: torch.Tensor, bucket: Bucket) -> NamedTensors:
    """The tensors of a bucket as views of its bytes."""
    return [
        (
            s.meta.name,
            buffer[s.offset : s.offset + s.nbytes].view(_dtype(s.meta)).view(s.meta.shape),
        )
        for s in bucket.slots
    ]


class BucketSums:
    """Row and column sums of one bucket, computed while it is filled.

    On a CPU, a block that has just been copied is still in the cache, so summing it needs no second
    memory access. numpy's column sums of integers are four times as fast as torch's.
    """

    def __init__(self, packed: torch.Tensor) -> None:
        words = packed.view(torch.int64)
        whole = words.numel() // _COLUMNS * _COLUMNS
        self._matrix, self._tail = words[:whole].view(-1, _COLUMNS), words[whole:]
        self._on_cpu = packed.device.type == "cpu"
        self._rows = np.empty(len(self._matrix), np.int64)
        self._columns = np.zeros(_COLUMNS, np.int64)
        self._done = 0  # rows

    def reach(self, nbytes: int) -> None:
        """Sum the new complete rows within the first `nbytes` of the bucket."""
        end = min(nbytes // (8 * _COLUMNS), len(self._rows))
        if not self._on_cpu:
            return
        numbers = self._matrix.numpy()
        for start in range(self._done, end, _BLOCK_ROWS):
            block = numbers[start : min(start + _BLOCK_ROWS, end)]
            np.add.reduce(block, axis=1, out=self._rows[start : start + len(block)])
            self._columns += np.add.reduce(block, axis=0)
        self._done = max(self._done, end)

    def parts(self) -> tuple[IntArray, IntArray, IntArray]:
        """Row sums, column sums (modulo 2^64), and the words after the last whole row."""
        tail = self._tail.cpu().numpy()
        if not self._on_cpu:
            matrix = self._matrix
            return matrix.sum(dim=1).cpu().numpy(), matrix.sum(dim=0).cpu().numpy(), tail
        return self._rows, self._columns, tail


class Checksum:
    """Fast, order-sensitive digest of packed weights.

    Bytes are read as a matrix of 64-bit words, whose row sums and column sums (modulo 2^64) go into
    CRC-32 and Adler-32. One changed word changes a row sum and a column sum; two swapped words
    change at least one of them. Runs at memory speed on the device that holds the bytes.
    """

    def __init__(self, metas: Sequence[TensorMeta]) -> None:
        self._crc = zlib.crc32(repr([(m.name, m.dtype, m.shape) for m in metas]).encode())
        self._adler = 0

    def update(self, packed: torch.Tensor) -> None:
        """Add one bucket: uint8, a multiple of 8 bytes."""
        sums = BucketSums(packed)
        sums.reach(packed.numel())
        self.fold(sums)

    def fold(self, sums: BucketSums) -> None:
        """Add a bucket whose sums are complete."""
        for part in sums.parts():
            data = part.tobytes()
            self._crc = zlib.crc32(data, self._crc)
            self._adler = zlib.adler32(data, self._adler)

    @property
    def value(self) -> int:
        """The digest as a number below 2^63."""
        return (self._adler << 32 | self._crc) & (2**63 - 1)

    @property
    def text(self) -> str:
        """The digest as 16 hexadecimal digits."""
        return f"{self.value:016x}"


def make_offer(
    version: int,
    metas: Sequence[TensorMeta],
    transport: str,
    bucket_bytes: int = BUCKET_BYTES,
) -> WeightOffer:
    """The offer of a transfer that has not been sent; `transport` is its name."""
    nbytes = sum(b.nbytes for b in plan_buckets(metas, bucket_bytes))
    return WeightOffer(version, tuple(metas), nbytes, transport, bucket_bytes=bucket_bytes)


def fill_bucket(packed: torch.Tensor, bucket: Bucket, stream: Iterator[NamedTensor]) -> BucketSums:
    """Copy the next tensors of the stream into a bucket, cast to the offered dtypes.

    Returns:
        The sums of the copied bytes, for `Checksum.fold`.
    """
    sums = BucketSums(packed)
    for slot, (name, view) in zip(bucket.slots, bucket_views(packed, bucket), strict=True):
        sent, tensor = next(stream, ("", None))
        if tensor is None or sent != name or tensor.shape != view.shape:
            got = "nothing" if tensor is None else f"{sent} {tuple(tensor.shape)}"
            raise WeightSyncError(
                f"sender holds {got} where {name} {slot.meta.shape} was offered",
                fix="yield tensors in the order of the offer's metas",
            )
        end = slot.offset + slot.nbytes
        packed[end : slot.offset + _aligned(slot.nbytes)].zero_()
        if tensor.is_contiguous() and tensor.device == packed.device:
            target, source = view.view(-1), tensor.detach().view(-1)
            step = _COPY_BYTES // _dtype(slot.meta).itemsize
            for first in range(0, len(source), step):
                target[first : first + step].copy_(source[first : first + step])
                sums.reach(min(slot.offset + _COPY_BYTES * (first // step + 1), end))
        else:
            view.copy_(tensor)
        sums.reach(slot.offset + _aligned(slot.nbytes))
    return sums


def flatten(buckets: Iterable[NamedTensors]) -> Iterator[NamedTensor]:
    """The tensors of all groups, one after the other."""
    for bucket in buckets:
        yield from bucket


def require_exhausted(stream: Iterator[NamedTensor]) -> None:
    """Run a sender's stream to its end; raise WeightSyncError if it has more than was offered."""
    # The stream must end even if nothing is left: ZeRO-3 gathers are collectives of all ranks.
    left = [name for name, _ in stream]
    if left:
        raise WeightSyncError(f"weights left over after the transfer: {', '.join(left[:3])}")

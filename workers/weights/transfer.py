"""Versioned, checksummed transfer of full weights from one sender to many receivers.

Weights are sent in buckets of whole layers (`workers.weights.packing`), by one of two transports:

* shared memory (one node): an anonymous mapping that receivers open through /proc; the kernel frees
  it when the last process that holds it ends, so a killed run leaves nothing behind;
* a private process group (gloo between CPUs, NCCL between GPUs), separate from every other group of
  the process, with a timeout on each operation.
"""

from __future__ import annotations

import mmap
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from workers.errors import ChecksumError, WeightSyncError
from workers.process import rendezvous
from workers.records.weights import GroupAddress, TensorMeta, WeightOffer, WeightReceipt
from workers.weights.packing import (
    BUCKET_BYTES,
    Checksum,
    NamedTensors,
    bucket_views,
    describe,
    fill_bucket,
    flatten,
    make_offer,
    plan_buckets,
    require_exhausted,
)

__all__ = [
    "BUCKET_BYTES",
    "GroupReceiver",
    "GroupSender",
    "NamedTensors",
    "SharedMemoryReceiver",
    "SharedMemorySender",
    "describe",
    "make_offer",
]

_RESTART = "restart the engine, then transfer the whole model again"


class SharedMemorySender:
    """Publishes weights in an anonymous shared mapping that every weight sync reuses.

    All receivers must have finished before the next `publish`, which overwrites the bytes.
    """

    def __init__(self, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._bucket_bytes = bucket_bytes
        self._descriptor = -1
        self._buffer: torch.Tensor | None = None

    def publish(
        self, version: int, metas: Sequence[TensorMeta], buckets: Iterable[NamedTensors]
    ) -> WeightOffer:
        """Copy the weights into the mapping.

        Args:
            version: Policy version of these weights.
            metas: The weights to send, in order; tensors are cast to these dtypes.
            buckets: The tensors in the same order, in groups of any size; each group is consumed
                before the next is requested.

        Returns:
            The offer for the receivers, with the checksum.

        Raises:
            WeightSyncError: The tensors do not match `metas`.
        """
        plan = plan_buckets(metas, self._bucket_bytes)
        buffer = self._reserve(sum(b.nbytes for b in plan))
        checksum, stream = Checksum(metas), flatten(buckets)
        for bucket in plan:
            packed = buffer[bucket.start : bucket.start + bucket.nbytes]
            checksum.fold(fill_bucket(packed, bucket, stream))
        require_exhausted(stream)
        location = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        return make_offer(
            version, metas, "shm", self._bucket_bytes, location=location, checksum=checksum.text
        )

    def _reserve(self, nbytes: int) -> torch.Tensor:
        if self._buffer is None or self._buffer.numel() != nbytes:
            self.close()
            self._descriptor = os.memfd_create("weights", os.MFD_CLOEXEC)
            os.ftruncate(self._descriptor, max(nbytes, 1))
            mapping = mmap.mmap(self._descriptor, max(nbytes, 1))
            self._buffer = torch.frombuffer(mapping, dtype=torch.uint8)[:nbytes]
        return self._buffer

    def close(self) -> None:
        """Release the mapping; the memory is freed when the last receiver releases it too."""
        self._buffer = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class SharedMemoryReceiver:
    """Maps a sender's buffer read-only, and keeps the mapping until the buffer changes."""

    def __init__(self) -> None:
        self._key: tuple[str, int, int] | None = None
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def receive(self, offer: WeightOffer) -> tuple[list[NamedTensors], str]:
        """Verify all bytes, then return views of them.

        Returns:
            Buckets of (name, tensor) views, valid until the sender publishes again, and the
            checksum of the received bytes.

        Raises:
            WeightSyncError: The sender is gone or its buffer is too small.
            ChecksumError: The bytes differ from those that were published.
        """
        self._map(offer)
        plan = plan_buckets(offer.metas, offer.bucket_bytes)
        parts = [self._buffer[b.start : b.start + b.nbytes] for b in plan]
        checksum = Checksum(offer.metas)
        for part in parts:
            checksum.update(part)
        verify_checksum(offer, checksum.text, offer.checksum)
        return [bucket_views(p, b) for p, b in zip(parts, plan, strict=True)], checksum.text

    def _map(self, offer: WeightOffer) -> None:
        try:
            with Path(offer.location).open("rb") as file:
                stat = os.fstat(file.fileno())
                key = (offer.location, stat.st_ino, stat.st_size)
                if stat.st_size < offer.nbytes:
                    raise WeightSyncError(
                        f"shared buffer holds {stat.st_size} bytes of {offer.nbytes}",
                        where=offer.location,
                    )
                if key != self._key:
                    mapping = mmap.mmap(file.fileno(), stat.st_size, prot=mmap.PROT_READ)
                    self._buffer, self._key = _read_only(mapping), key
        except OSError as error:
            raise WeightSyncError(
                f"cannot open the sender's shared buffer: {error.strerror}",
                where=offer.location,
                fix="the sender is gone, or on another node: restart it, or use gloo",
            ) from error

    def close(self) -> None:
        """Release the mapping."""
        self._key, self._buffer = None, torch.empty(0, dtype=torch.uint8)


def _read_only(mapping: mmap.mmap) -> torch.Tensor:
    with warnings.catch_warnings():  # torch has no read-only tensors; this one is never written
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.frombuffer(mapping, dtype=torch.uint8)


def verify_checksum(offer: WeightOffer, received: str, sent: str) -> None:
    """Raise ChecksumError unless both digests are equal."""
    if received != sent:
        raise ChecksumError(
            f"weights of version {offer.version} arrived with checksum {received}, sent as {sent}",
            where=offer.location or offer.transport,
            fix=_RESTART,
        )


class _Group:
    """A private process group with a timeout on each operation."""

    def __init__(
        self, address: GroupAddress, rank: int, device: torch.device, seconds: float
    ) -> None:
        self.device = device if address.backend == "nccl" else torch.device("cpu")
        self.where = f"{address.backend} group {address.host}:{address.port}, rank {rank}"
        self._timeout = timedelta(seconds=seconds)
        self._buffer = torch.empty(0, dtype=torch.uint8, device=self.device)
        with self._failures():
            self._store: dist.Store | None = rendezvous.store(
                address.host, address.port, address.world_size, rank, self._timeout
            )
            store = dist.PrefixStore("weights", self._store)
            self._group: Any = _backend(address, store, rank, self._timeout)

    def buffer(self, nbytes: int) -> torch.Tensor:
        """The first bytes of a reusable buffer, which grows to the size of the largest bucket."""
        if self._buffer.numel() < nbytes:
            self._buffer = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        return self._buffer[:nbytes]

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Send from rank 0 to all others; raise WeightSyncError after the timeout."""
        if self._group is None:
            raise WeightSyncError("this group was left", where=self.where, fix="connect again")
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        with self._failures():
            work = self._group.broadcast([tensor], options)
            work.wait(self._timeout)

    def share(self, numbers: list[int]) -> list[int]:
        """Rank 0's numbers, on every rank."""
        tensor = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        self.broadcast(tensor)
        return tensor.tolist()

    def close(self) -> None:
        """Leave the group without waiting for the others; no operation may be running."""
        group, self._group, self._store = self._group, None, None
        self._buffer = torch.empty(0, dtype=torch.uint8, device=self.device)
        if group is not None:
            with self._failures():
                # Without it NCCL keeps its GPU memory. For gloo it does nothing: sockets and
                # threads end with the last reference.
                group.abort()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch raises it for lost and late peers
            raise WeightSyncError(
                f"a peer is gone or did not answer within {self._timeout.total_seconds():g} s "
                f"({str(error).splitlines()[0]})",
                where=self.where,
                fix="restart the engine that failed, then connect all sides on a new port",
            ) from error


def _backend(
    address: GroupAddress, store: dist.Store, rank: int, timeout: timedelta
) -> dist.ProcessGroupGloo | dist.ProcessGroupNCCL:
    if address.backend == "nccl":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return dist.ProcessGroupNCCL(store, rank, address.world_size, options)
    return dist.ProcessGroupGloo(store, rank, address.world_size, timeout)


def _header(offer: WeightOffer) -> list[int]:
    return [offer.version, offer.nbytes, offer.bucket_bytes, Checksum(offer.metas).value]


class GroupSender:
    """Rank 0 of a transfer group. The constructor waits for every receiver to join.

    Buckets are filled on `device` for NCCL, in host memory for gloo.
    """

    def __init__(self, address: GroupAddress, device: torch.device, seconds: float) -> None:
        self._group = _Group(address, 0, device, seconds)

    def close(self) -> None:
        """Leave the group; its receivers cannot use it after that."""
        self._group.close()

    def send(self, offer: WeightOffer, buckets: Iterable[NamedTensors]) -> WeightReceipt:
        """Broadcast the offered weights, then their checksum.

        Args:
            offer: From `make_offer`; every receiver must have the same one.
            buckets: The tensors in the order of the offer, in groups of any size; each group is
                consumed before the next is requested.

        Raises:
            WeightSyncError: A receiver is lost or late, or the tensors do not match the offer.
        """
        began = time.perf_counter()
        self._group.share(_header(offer))
        checksum, stream = Checksum(offer.metas), flatten(buckets)
        for bucket in plan_buckets(offer.metas, offer.bucket_bytes):
            packed = self._group.buffer(bucket.nbytes)
            checksum.fold(fill_bucket(packed, bucket, stream))
            self._group.broadcast(packed)
        require_exhausted(stream)
        self._group.share([checksum.value])
        return WeightReceipt(
            offer.version, checksum.text, offer.nbytes, time.perf_counter() - began
        )


class GroupReceiver:
    """Any rank but 0 of a transfer group. The constructor waits for the sender."""

    def __init__(
        self, address: GroupAddress, rank: int, device: torch.device, seconds: float
    ) -> None:
        self._group = _Group(address, rank, device, seconds)
        self.checksum = ""

    def close(self) -> None:
        """Leave the group."""
        self._group.close()

    def receive(self, offer: WeightOffer) -> Iterator[NamedTensors]:
        """Yield buckets of (name, tensor) views; each is overwritten by the next.

        The checksum is compared after the last bucket and stored in `checksum`. A receiver may load
        each bucket at once, but must not use the weights before this iterator ends.

        Raises:
            WeightSyncError: The sender is lost or late, or sends something else.
            ChecksumError: The bytes differ from those that were sent.
        """
        header = _header(offer)
        sent = self._group.share([0] * len(header))
        if sent != header:
            raise WeightSyncError(
                f"sender announces version {sent[0]}, {sent[1]} bytes; "
                f"expected version {header[0]}, {header[1]} bytes",
                where=self._group.where,
                fix="give the same offer to all sides",
            )
        checksum = Checksum(offer.metas)
        for bucket in plan_buckets(offer.metas, offer.bucket_bytes):
            packed = self._group.buffer(bucket.nbytes)
            self._group.broadcast(packed)
            checksum.update(packed)
            yield bucket_views(packed, bucket)
        self.checksum = checksum.text
        verify_checksum(offer, checksum.text, f"{self._group.share([0])[0]:016x}")

"""Weights by broadcast in a private process group of torch, for the transports gloo and nccl.

The group is separate from every other group of the process and has a timeout on each operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from workers.errors import WeightSyncError
from workers.process import rendezvous
from workers.records.weights import WeightOffer
from workers.weights.packing import Bucket, Checksum
from workers.weights.transport import ByteReceiver, ByteSender, Link

ProcessGroup = Any  # torch's classes of groups have no common type that is public
MakeGroup = Callable[[dist.Store, int, int, timedelta], ProcessGroup]


class _Group:
    """One rank's end of a group. The constructor waits for the other side.

    Args:
        make: Makes the group of a backend.
        on_gpu: Whether the backend sends the memory of GPUs, or of the host.
        link: Address and rank.
    """

    def __init__(self, make: MakeGroup, on_gpu: bool, link: Link) -> None:
        assert link.address is not None, "a group has an address"
        host, port, size = link.address.host, link.address.port, link.address.world_size
        self.where = f"{link.address.transport} group {host}:{port}, rank {link.rank}"
        self._device = link.device if on_gpu else torch.device("cpu")
        self._timeout = timedelta(seconds=link.seconds)
        self._buffer = torch.empty(0, dtype=torch.uint8, device=self._device)
        with self._failures():
            self._store: dist.Store | None = rendezvous.store(
                host, port, size, link.rank, self._timeout
            )
            store = dist.PrefixStore("weights", self._store)
            self._group: ProcessGroup = make(store, link.rank, size, self._timeout)

    def buffer(self, bucket: Bucket) -> torch.Tensor:
        """The first bytes of a reusable buffer, which grows to the size of the largest bucket."""
        if self._buffer.numel() < bucket.nbytes:
            self._buffer = torch.empty(bucket.nbytes, dtype=torch.uint8, device=self._device)
        return self._buffer[: bucket.nbytes]

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Send from rank 0 to all others; raise WeightSyncError after the timeout."""
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        with self._failures():
            self._group.broadcast([tensor], options).wait(self._timeout)

    def share(self, numbers: list[int]) -> list[int]:
        """Rank 0's numbers, on every rank."""
        tensor = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        self.broadcast(tensor)
        return tensor.tolist()

    def close(self) -> None:
        """Leave the group without waiting for the others; no operation may be running."""
        group, self._group, self._store = self._group, None, None
        self._buffer = torch.empty(0, dtype=torch.uint8, device=self._device)
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


def _header(offer: WeightOffer) -> list[int]:
    return [offer.version, offer.nbytes, offer.bucket_bytes, Checksum(offer.metas).value]


class GroupSender(ByteSender):
    """Rank 0. The constructor waits for every receiver to join."""

    def __init__(self, make: MakeGroup, on_gpu: bool, link: Link) -> None:
        self._group = _Group(make, on_gpu, link)

    def open(self, offer: WeightOffer) -> None:
        """Announce the offer, which every receiver compares with its own."""
        self._group.share(_header(offer))

    def buffer(self, bucket: Bucket) -> torch.Tensor:
        """A buffer that all buckets reuse."""
        return self._group.buffer(bucket)

    def send(self, packed: torch.Tensor) -> None:
        """Broadcast; raise WeightSyncError if a receiver is lost or late."""
        self._group.broadcast(packed)

    def finish(self, checksum: int) -> str:
        """Broadcast the checksum."""
        self._group.share([checksum])
        return ""

    def close(self) -> None:
        """Leave the group; its receivers cannot use it after that."""
        self._group.close()


class GroupReceiver(ByteReceiver):
    """Any rank but 0. The constructor waits for the sender."""

    def __init__(self, make: MakeGroup, on_gpu: bool, link: Link) -> None:
        self._group = _Group(make, on_gpu, link)

    def open(self, offer: WeightOffer) -> None:
        """Compare the sender's announcement with the offer.

        Raises:
            WeightSyncError: The sender is lost or late, or sends something else.
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

    def receive(self, bucket: Bucket) -> torch.Tensor:
        """The next bucket, in a buffer that all buckets reuse."""
        packed = self._group.buffer(bucket)
        self._group.broadcast(packed)
        return packed

    def finish(self) -> int:
        """The sender's checksum."""
        return self._group.share([0])[0]

    def close(self) -> None:
        """Leave the group."""
        self._group.close()

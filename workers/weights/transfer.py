"""Versioned, checksummed transfer of full weights from one sender to many receivers.

Both sides are the same for every transport (`workers.weights.transport`): weights are packed into
buckets of whole layers, the transport moves the bytes, and a checksum of all bytes is compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Generic, TypeVar

import torch

from workers.errors import ChecksumError, WeightSyncError
from workers.records.weights import GroupAddress, WeightOffer
from workers.weights.packing import (
    Bucket,
    Checksum,
    NamedTensors,
    bucket_views,
    fill_bucket,
    flatten,
    plan_buckets,
    require_exhausted,
)
from workers.weights.transport import (
    ByteReceiver,
    ByteSender,
    Link,
    Transport,
    find_transport,
)

End = TypeVar("End", ByteSender, ByteReceiver)


def _whole(packed: torch.Tensor, bucket: Bucket, offer: WeightOffer) -> torch.Tensor:
    """The memory of a bucket, if it has the bucket's size."""
    if packed.dtype != torch.uint8 or packed.shape != (bucket.nbytes,):
        raise WeightSyncError(
            f"{packed.dtype} of shape {tuple(packed.shape)} for a bucket of {bucket.nbytes} bytes",
            where=offer.location or offer.transport,
            fix="restart the engine; a transport of your own must give uint8 of the bucket's size",
        )
    return packed


class _Side(ABC, Generic[End]):
    """The ends of one process, by name of their transport."""

    def __init__(self, link: Link, folder: str = "") -> None:
        """Nothing is opened yet.

        Args:
            link: Device and timeout of every end.
            folder: First folder of the search for a user's transport.
        """
        self._link = link
        self._folder = folder
        self._ends: dict[str, End] = {}

    def connect(self, address: GroupAddress, rank: int = 0) -> None:
        """Join the group at an address, once all others have come; leaves the previous group."""
        if (previous := self._ends.pop(address.transport, None)) is not None:
            previous.close()  # frees its buffers before the next end allocates its own
        link = replace(self._link, rank=rank, address=address)
        self._ends[address.transport] = self._open(self.transport(address.transport), link)

    def transport(self, name: str) -> Transport:
        """The transport of a name, with its properties."""
        return find_transport(name, self._folder)

    def close(self) -> None:
        """Leave every group and release all memory."""
        while self._ends:
            self._ends.popitem()[1].close()

    def _end(self, name: str) -> End:
        """The connected end, or that of a one-sided transport, which needs no connection."""
        if name not in self._ends:
            transport = self.transport(name)
            if not transport.one_sided:
                raise WeightSyncError(
                    f"no transfer group of {name}", fix="connect before sending weights"
                )
            self._ends[name] = self._open(transport, self._link)
        return self._ends[name]

    @abstractmethod
    def _open(self, transport: Transport, link: Link) -> End: ...


class WeightSender(_Side[ByteSender]):
    """The trainer's side of every transport."""

    def send(self, offer: WeightOffer, tensors: Iterable[NamedTensors]) -> WeightOffer:
        """Send the offered weights.

        Args:
            offer: From `make_offer`; its dtypes are those that travel.
            tensors: The weights in the order of the offer, in groups of any size; each group is
                consumed before the next is requested.

        Returns:
            The offer with the checksum and the place of the bytes. Receivers of a one-sided
            transport need this one, others have the same offer without them.

        Raises:
            WeightSyncError: A receiver is lost or late, the tensors do not match the offer, or
                the transport was not connected.
        """
        end = self._end(offer.transport)
        checksum, stream = Checksum(offer.metas), flatten(tensors)
        end.open(offer)
        for bucket in plan_buckets(offer.metas, offer.bucket_bytes):
            packed = _whole(end.buffer(bucket), bucket, offer)
            checksum.fold(fill_bucket(packed, bucket, stream))
            end.send(packed)
        require_exhausted(stream)
        location = end.finish(checksum.value)
        return replace(offer, location=location, checksum=checksum.text)

    def _open(self, transport: Transport, link: Link) -> ByteSender:
        return transport.sender(link)


class WeightReceiver(_Side[ByteReceiver]):
    """An engine's side of every transport."""

    checksum = ""  # of the last weights that were received completely

    def receive(self, offer: WeightOffer) -> Iterator[NamedTensors]:
        """The offered weights, in buckets of (name, tensor) views.

        If the transport reuses its buffer, each bucket is overwritten by the next and may be loaded
        at once, but the weights must not be used before this iterator ends; otherwise all bytes
        are verified before this returns.

        Raises:
            WeightSyncError: The sender is lost or late, or sends something else.
            ChecksumError: The bytes differ from those that were sent.
        """
        arriving = self._arriving(self._end(offer.transport), offer)
        reuses = self.transport(offer.transport).reuses_buffer
        return arriving if reuses else iter(list(arriving))

    def _arriving(self, end: ByteReceiver, offer: WeightOffer) -> Iterator[NamedTensors]:
        checksum = Checksum(offer.metas)
        end.open(offer)
        for bucket in plan_buckets(offer.metas, offer.bucket_bytes):
            packed = _whole(end.receive(bucket), bucket, offer)
            checksum.update(packed)
            yield bucket_views(packed, bucket)
        announced = end.finish()
        sent = offer.checksum if announced is None else f"{announced:016x}"
        if sent and sent != checksum.text:  # unknown here: the driver compares both sides
            raise ChecksumError(
                f"weights of version {offer.version} arrived with checksum {checksum.text}, "
                f"sent as {sent}",
                where=offer.location or offer.transport,
                fix="restart the engine, then transfer the whole model again",
            )
        self.checksum = checksum.text

    def _open(self, transport: Transport, link: Link) -> ByteReceiver:
        return transport.receiver(link)

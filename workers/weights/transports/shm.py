"""Weights through shared memory, on one node.

The sender writes into an anonymous mapping that receivers open through /proc; the kernel frees it
when the last process that holds it ends, so a killed run leaves nothing behind.
"""

from __future__ import annotations

import mmap
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from workers.errors import WeightSyncError
from workers.records.weights import WeightOffer
from workers.weights.transport import ByteReceiver, ByteSender, Link, Transport

if TYPE_CHECKING:
    import torch

    from workers.weights.packing import Bucket


class SharedMemorySender(ByteSender):
    """Writes into a shared mapping that every transfer reuses.

    All receivers must have finished before the next transfer, which overwrites the bytes.
    """

    def __init__(self, _: Link) -> None:
        self._descriptor = -1
        self._buffer: torch.Tensor | None = None

    def open(self, offer: WeightOffer) -> None:
        """Reserve the memory of the whole model."""
        import torch  # here, because the driver reads `TRANSPORT` without it

        if self._buffer is None or self._buffer.numel() != offer.nbytes:
            self.close()
            self._descriptor = os.memfd_create("weights", os.MFD_CLOEXEC)
            os.ftruncate(self._descriptor, max(offer.nbytes, 1))
            mapping = mmap.mmap(self._descriptor, max(offer.nbytes, 1))
            self._buffer = torch.frombuffer(mapping, dtype=torch.uint8)[: offer.nbytes]

    def buffer(self, bucket: Bucket) -> torch.Tensor:
        """The bucket's part of the mapping."""
        assert self._buffer is not None, "open comes first"
        return self._buffer[bucket.start : bucket.start + bucket.nbytes]

    def send(self, packed: torch.Tensor) -> None:
        """Do nothing: the bytes were packed where receivers read them."""

    def finish(self, checksum: int) -> str:  # noqa: ARG002  the offer carries it
        """Path of the mapping."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        """Release the mapping; the memory is freed when the last receiver releases it too."""
        self._buffer = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class SharedMemoryReceiver(ByteReceiver):
    """Maps a sender's buffer read-only, and keeps the mapping until the buffer changes."""

    def __init__(self, _: Link) -> None:
        self._key: tuple[str, int, int] | None = None
        self._buffer: torch.Tensor | None = None

    def open(self, offer: WeightOffer) -> None:
        """Map the offered buffer.

        Raises:
            WeightSyncError: The sender is gone or its buffer is too small.
        """
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

    def receive(self, bucket: Bucket) -> torch.Tensor:
        """The bucket's part of the mapping, valid until the sender publishes again."""
        assert self._buffer is not None, "open comes first"
        return self._buffer[bucket.start : bucket.start + bucket.nbytes]


def _read_only(mapping: mmap.mmap) -> torch.Tensor:
    import torch

    with warnings.catch_warnings():  # torch has no read-only tensors; this one is never written
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.frombuffer(mapping, dtype=torch.uint8)


TRANSPORT = Transport(
    SharedMemorySender,
    SharedMemoryReceiver,
    one_sided=True,
    spans_nodes=False,
    reuses_buffer=False,
)

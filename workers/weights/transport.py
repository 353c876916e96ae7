"""What a weight transport is: how packed bytes get from one trainer process to all engines.

A transport moves buckets of bytes. `workers.weights.transfer` packs the weights into these buckets,
computes the checksums and compares them, the same for every transport.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.extensions.kinds import Kind
from workers.records.weights import GroupAddress, WeightOffer

if TYPE_CHECKING:  # a second to import; the driver asks only what a transport can do
    import torch

    from workers.weights.packing import Bucket


@dataclass(frozen=True, slots=True)
class Link:
    """One end's place in a transport."""

    device: torch.device  # of the model that sends or receives
    seconds: float  # timeout of each operation
    rank: int = 0  # 0 is the sender; receivers that connect have 1, 2, ...
    address: GroupAddress | None = None  # where the sender waits; None for one-sided transports


class ByteSender(ABC):
    """The trainer's end. One transfer: `open`, then `buffer` and `send` per bucket, `finish`.

    The device of `buffer` decides where weights are packed; tensors are copied there.
    """

    def open(self, offer: WeightOffer) -> None:  # noqa: B027  optional
        """Begin the transfer of an offer."""

    @abstractmethod
    def buffer(self, bucket: Bucket) -> torch.Tensor:
        """Memory to pack the next bucket into: uint8, (bucket.nbytes,)."""

    @abstractmethod
    def send(self, packed: torch.Tensor) -> None:
        """Send the bucket that was packed into the last `buffer`."""

    def finish(self, checksum: int) -> str:  # noqa: ARG002  optional
        """End the transfer; returns the place where receivers find it, "" if they need none."""
        return ""

    def close(self) -> None:  # noqa: B027  optional
        """Release everything; called once, and no other method after it."""


class ByteReceiver(ABC):
    """An engine's end. One transfer: `open`, then `receive` per bucket, `finish`."""

    def open(self, offer: WeightOffer) -> None:  # noqa: B027  optional
        """Begin to receive an offer."""

    @abstractmethod
    def receive(self, bucket: Bucket) -> torch.Tensor:
        """The bytes of the next bucket: uint8, (bucket.nbytes,)."""

    def finish(self) -> int | None:
        """End the transfer; returns the checksum that the sender's `finish` got.

        None if the transport does not carry it: then the driver alone compares it.
        """
        return None

    def close(self) -> None:  # noqa: B027  optional
        """Release everything; called once, and no other method after it."""


@dataclass(frozen=True, slots=True)
class Transport:
    """A way for weights to travel, and what it can do."""

    sender: Callable[[Link], ByteSender]
    receiver: Callable[[Link], ByteReceiver]
    # True: weights are complete when they are published, and each receiver reads them by itself, so
    # an engine that is started again can read them too. False: all ends connect first, and receive
    # while the sender sends.
    one_sided: bool = False
    spans_nodes: bool = True  # reaches engines on other nodes than the sender's
    needs_gpu: bool = False  # every end needs GPUs that it shares with no other end
    reuses_buffer: bool = True  # a received bucket is valid only until the next one

    def __post_init__(self) -> None:
        """Raises TypeError where a field is something else, at the user's line."""
        for name in ("sender", "receiver"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} is {getattr(self, name)!r}: it must be a class")
        for name in ("one_sided", "spans_nodes", "needs_gpu", "reuses_buffer"):
            if type(getattr(self, name)) is not bool:
                raise TypeError(f"{name} is {getattr(self, name)!r}: it must be True or False")


WHERE = "rollout.transport"
KIND = Kind("weight transport", Transport, "workers.weights.transports", "TRANSPORT")


def find_transport(name: str, folder: str = "") -> Transport:
    """The transport of a name or an import path; `folder` is searched first for a user's module.

    Raises:
        ConfigError: There is none of this name, it cannot be imported, or it is something else.
    """
    return KIND.find(name, WHERE, folder)

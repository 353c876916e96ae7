"""Records of a weight sync: the sender's offer, the group's address, and receipts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """Name, dtype (torch name, e.g. "float32") and shape of one weight, Hugging Face names."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WeightOffer:
    """The weights that a sender will transfer, and where a receiver finds them."""

    version: int
    metas: tuple[TensorMeta, ...]
    nbytes: int
    transport: str  # name of a weight transport
    location: str = ""  # where receivers of a one-sided transport find the bytes
    checksum: str = ""  # known once the weights are sent
    bucket_bytes: int = 64 << 20  # both sides pack whole layers into buckets of this size


@dataclass(frozen=True, slots=True)
class GroupAddress:
    """Rendezvous of a sender and its receivers, for transports that connect."""

    host: str
    port: int
    world_size: int
    transport: str = "gloo"


@dataclass(frozen=True, slots=True)
class WeightReceipt:
    """One side's record of a transfer; the checksums of all sides must agree."""

    version: int
    checksum: str
    nbytes: int
    seconds: float

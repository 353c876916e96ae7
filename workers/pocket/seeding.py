"""Counter-based random numbers: item n of a stream can be drawn without the items before it."""

from __future__ import annotations

import random
from hashlib import blake2b


def keyed_hash(*key: int | str) -> int:
    """A 64-bit hash of a key, the same on every machine and in every process."""
    # repr distinguishes ("a", 1) from ("a1",).
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def keyed_random(*key: int | str) -> random.Random:
    """A generator that depends only on the key, such as (seed, stream, split, index)."""
    return random.Random(keyed_hash(*key))

"""Seed derivation: each random choice has its own seed, from the run's seed and a path."""

from __future__ import annotations

import hashlib


def derive(seed: int, *path: str | int) -> int:
    """A 31-bit seed for `path`, independent of every other path.

    Args:
        seed: the run's seed.
        path: purpose of the random numbers, e.g. ("ppo", iteration, prompt, sample).

    Returns:
        An integer in [0, 2**31), which torch, numpy and vLLM all accept.
    """
    text = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") >> 1

"""One seed tree: every random choice of a run is named by a path below the run's seed."""

from __future__ import annotations

import hashlib


def derive(seed: int, *path: str | int) -> int:
    """A 31-bit seed for `path`, independent of every other path.

    Args:
        seed: the run's seed.
        path: what the numbers are for, e.g. ("ppo", iteration, prompt, sample).

    Returns:
        An integer in [0, 2**31): torch, numpy and vLLM all take it.
    """
    text = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") >> 1

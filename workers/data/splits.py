"""Which rows of a file are held out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import blake2b

import numpy as np

from workers.messages import IntArray

HELDOUT_FROM = 0.9  # keys whose hash lies in the last tenth of its range


def split_rows(keys: Sequence[str], held: Collection[str] = ()) -> tuple[IntArray, IntArray]:
    """Split rows into training and held-out ones by a stable hash of their keys.

    The hash alone decides, so a prompt that stands in several files is held out in all of them or
    in none, and neither the order nor the growth of a file moves a row. Of two or more distinct
    keys at least one falls on each side, whatever their hashes.

    Args:
        keys: One key a row, such as its prompt; equal keys stay together.
        held: Keys that are held out in any case.

    Returns:
        Row numbers of the training rows and of the held-out rows, in file order.
    """
    order = sorted(set(keys) - set(held), key=_place)
    count = sum(_place(key) >= HELDOUT_FROM for key in order)
    if len(order) > 1:
        count = min(max(count, 1), len(order) - 1)
    held_keys = {*held, *order[len(order) - count :]}
    is_held = np.array([key in held_keys for key in keys], dtype=bool)
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def _place(key: str) -> float:
    digest = blake2b(key.encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48

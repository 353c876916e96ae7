"""Split rows into training and held-out rows by stable hashes."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from workers.records.arrays import IntArray

HashArray = npt.NDArray[np.uint64]
BoolArray = npt.NDArray[np.bool_]


def stable_hash(text: str) -> int:
    """A 64-bit hash of a text, equal in every process and on every machine; never 0."""
    digest = blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1


def split_rows(
    keys: HashArray, fraction: float, held: BoolArray, fold: int = 0
) -> tuple[IntArray, IntArray]:
    """Split rows into training and held-out ones by the stable hashes of their keys.

    The hash alone decides, so a key that occurs in several sets is held out in all of them or in
    none, and neither the order nor the growth of a set moves a row. If two or more distinct keys
    are not in `held`, each side gets at least one of them, whatever their hashes.

    Args:
        keys: (N,) hash of each row's user or, if no user is named, of its prompt; equal keys stay
            together.
        fraction: Share of the keys that is held out.
        held: (N,) True = this row and all rows with its key are held out in any case.
        fold: Which slice of the range of hashes is held out: 0 = the highest, 1 = the next below,
            up to 1 / `fraction` slices. Folds have no key in common.

    Returns:
        Row numbers of the training rows and of the held-out rows, in order.
    """
    held_keys = np.unique(keys[held])
    free = np.setdiff1d(keys, held_keys)  # sorted
    edges = 2.0**64 * (1.0 - fraction * np.array([fold + 1, fold]))
    first, end = np.searchsorted(free.astype(np.float64), edges).tolist()
    if len(free) > 1:
        first = min(first, len(free) - 1)
        end = min(max(end, first + 1), first + len(free) - 1)
    is_held = np.isin(keys, np.concatenate([held_keys, free[first:end]]))
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)

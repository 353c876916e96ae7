"""Process rewards: a number per step of a response, placed at the tokens where the steps end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from workers.records.arrays import FloatArray

COUNT = "another number of step rewards than steps"


def split_steps(text: str, separator: str) -> list[str]:
    """The steps of a response; an empty one after the last separator does not count."""
    parts = text.split(separator)
    return parts[:-1] if len(parts) > 1 and not parts[-1].strip() else parts


def place_steps(
    ids: Sequence[int],
    text: str,
    rewards: Sequence[float],
    separator: str,
    decode: Callable[[Sequence[int]], str],
) -> FloatArray | None:
    """(T,) rewards of a response's tokens: that of each step at the token in which the step ends.

    The last step ends at the last token, the end token included.

    Args:
        ids: (T,) tokens of the response.
        text: The same, decoded.
        rewards: One number per step, reward units.
        separator: Between steps.
        decode: The text of the first tokens of a response.

    Returns:
        None if there are not as many steps as rewards.
    """
    steps = split_steps(text, separator)
    if len(steps) != len(rewards):
        return None
    placed = np.zeros(len(ids), np.float32)
    end = 0
    for step, reward in zip(steps[:-1], rewards[:-1], strict=True):
        end += len(step)
        placed[_token_at(ids, end, decode)] += reward
        end += len(separator)
    placed[-1] += rewards[-1]
    return placed


def _token_at(ids: Sequence[int], characters: int, decode: Callable[[Sequence[int]], str]) -> int:
    """The first token with which the decoded text has so many characters."""
    low, high = 0, len(ids) - 1
    while low < high:
        middle = (low + high) // 2
        if len(decode(ids[: middle + 1])) >= characters:
            high = middle
        else:
            low = middle + 1
    return low

"""A reward function that takes its time."""

from __future__ import annotations

import time


def long_words(prompts: list[str], responses: list[str]) -> list[float]:
    time.sleep(1.0)
    return [float(len(r)) for r in responses]

"""A reward function that fails five calls of seven, each in another way."""

from __future__ import annotations

import os
import time
from pathlib import Path


def score(responses: list[str]) -> object:
    calls = Path(os.environ["FLAKY_CALLS"])  # outlives the function's process
    with calls.open("a", encoding="utf-8") as file:
        file.write("x")
    match calls.stat().st_size % 7:
        case 1:
            raise RuntimeError("down")
        case 2:
            time.sleep(600)
        case 3:
            return {"score": 1.0}
        case 4:
            return [None for _ in responses]
        case 5:
            os._exit(9)
    return [float(len(response.split())) for response in responses]

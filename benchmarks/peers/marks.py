"""What a side's script is told, and what it tells of its steps. Runs in every environment."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Mark:
    """The end of a step, and the work that was done in it."""

    at: float  # seconds of the machine's monotonic clock
    sequences: int
    prompt_tokens: int  # of each sequence
    response_tokens: int  # of each sequence
    optimizer_steps: int  # of the policy


class Marks:
    """Writes marks, a line each."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def add(self, sequences: int, prompt: int, response: int, optimizer_steps: int) -> None:
        """Mark the end of a step, now."""
        mark = Mark(time.monotonic(), sequences, prompt, response, optimizer_steps)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(mark)) + "\n")


def read_marks(path: Path) -> list[Mark]:
    """The marks of a side that has ended."""
    return [Mark(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def job() -> dict[str, Any]:
    """What the script was told: the shape's numbers, `inputs`, `steps`, `marks` and so on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path, help="JSON that benchmarks.peers writes")
    return json.loads(parser.parse_args().job.read_text(encoding="utf-8"))

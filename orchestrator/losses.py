"""What is remembered of workers that were lost."""

from __future__ import annotations

import time
from collections.abc import Sequence

from orchestrator.run_folder import RunFolder, append_lines
from orchestrator.waiting import Position
from workers.errors import RehearsalError


class Losses:
    """Counts losses and keeps each as a line of losses.jsonl."""

    def __init__(self, folder: RunFolder, position: Position) -> None:
        self._folder = folder
        self._position = position
        self.count = 0
        self.discarded = 0  # replies of lost workers that came and were not taken

    def add(self, workers: Sequence[str], error: RehearsalError) -> None:
        """These were lost, which showed as `error`, and are being made anew."""
        self.count += 1
        line = {
            "time": time.time(),
            "lost": list(workers),
            "stage": self._position.stage,
            "step": self._position.step,
            "error": error.what,
        }
        append_lines(self._folder.losses, [line], "a loss")

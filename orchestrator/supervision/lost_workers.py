"""Record of lost workers (losses.jsonl)."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

from orchestrator.run_files.folder import RunFolder, append_lines
from orchestrator.supervision.pending import Position
from workers.errors import RehearsalError
from workers.process.disk import writing


class Losses:
    """Counts losses over all processes of a run; each loss is one line of losses.jsonl."""

    def __init__(
        self, folder: RunFolder, position: Position, note: Callable[[str], None] = lambda _: None
    ) -> None:
        """Continue the counts of earlier processes of the run.

        Args:
            folder: Of the run.
            position: Where the run is.
            note: Shows a note to the user.
        """
        self._folder = folder
        self._position = position
        self._note = note
        before = _lines(folder)
        self.count = sum("lost" in line for line in before)
        #: Workers lost, by role.
        self.by_role = Counter(role for line in before for role in _roles(line.get("lost")))
        # replies of lost workers that had arrived and were discarded
        thrown = [line.get("discarded_replies", 0) for line in before]
        self.discarded = sum(n for n in thrown if isinstance(n, int))
        self.given_up = [str(line["given_up"]) for line in before if "given_up" in line]

    def add(self, workers: Sequence[str], error: RehearsalError, discarded: int = 0) -> None:
        """Record the loss of workers, its error, and how many of their replies are discarded."""
        self.count += 1
        self.by_role.update(_roles(list(workers)))
        self.discarded += discarded
        self._write({"lost": list(workers), "discarded_replies": discarded}, error)
        self._note(f"{', '.join(workers)} lost in {self._position}: {error.what}")

    def give_up(self, worker: str, error: RehearsalError) -> None:
        """Record that the run continues without a worker for good."""
        self.given_up.append(worker)
        self._write({"given_up": worker}, error)
        self._note(f"the run continues without {worker}: {error.what}")

    def _write(self, what: dict[str, Any], error: RehearsalError) -> None:
        where = {"stage": self._position.stage, "step": self._position.step}
        now = time.time()  # noqa: TID251 - for people
        line = {"time": now, **what, **where, "error": error.what}
        append_lines(self._folder.losses, [line], "a loss")


def _roles(workers: object) -> list[str]:
    """The role of each worker: a name is ROLE rank N."""
    names = cast("list[object]", workers) if isinstance(workers, list) else []
    return [str(name).partition(" ")[0] for name in names]


def _lines(folder: RunFolder) -> list[dict[str, Any]]:
    """The recorded lines; a partial last line of a killed run is terminated and skipped."""
    found: list[dict[str, Any]] = []
    if not folder.losses.exists():
        return found
    with writing(folder.losses, "a loss"), folder.losses.open("r+b") as file:
        text = file.read()
        if text and not text.endswith(b"\n"):
            file.write(b"\n")
    for line in text.splitlines():
        with suppress(ValueError):
            value = json.loads(line)
            found += [value] if isinstance(value, dict) else []
    return found

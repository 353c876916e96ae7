"""Spans as trace/spans.json, which Perfetto and chrome://tracing open without a network.

One process is the driver, with a track for each of its phases; the other is the roles, with a track
for each worker. Times are microseconds since the file was opened, by the driver's clock.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TextIO

from orchestrator.account import RoleSpan
from orchestrator.run_folder import RunFolder
from workers.disk import writing

_DRIVER, _ROLES = 0, 1


class Trace:
    """The trace file of one process that works on a run.

    The format allows a missing closing bracket, so a killed run leaves a readable file.
    """

    def __init__(self, folder: RunFolder) -> None:
        """Open the file: a run that goes on after it was killed keeps those of its processes."""
        number = len(list(folder.trace.glob("spans*.json")))
        name = f"spans-{number}.json" if number else "spans.json"
        self._path = folder.trace / name
        with writing(self._path, "a trace"):
            self._file: TextIO = self._path.open("w", encoding="utf-8")
            self._file.write("[")
        self._separator = "\n"
        self._start = time.monotonic()
        self._tracks: dict[tuple[int, str], int] = {}
        for process, title in ((_DRIVER, "driver"), (_ROLES, "roles")):
            self._name("process_name", process, 0, title)

    def phase(self, stage: str, step: int | None, phase: str, begin: float, seconds: float) -> None:
        """Add a span of the driver; phases overlap, and a track can only show nested spans."""
        facts = {"stage": stage, "step": step}
        self._span(_DRIVER, phase, phase, stage, (begin, begin + seconds), facts)
        with writing(self._path, "a trace"):
            self._file.flush()

    def call(self, span: RoleSpan) -> None:
        """Add a call of a worker, which has one track."""
        facts = {"transfer_ms": round(span.transfer * 1e3, 3)}
        track = f"{span.role} {span.rank}"
        self._span(_ROLES, track, span.verb, span.role, (span.begin, span.end), facts)

    def close(self) -> None:
        """Close the bracket and the file."""
        if not self._file.closed:
            with writing(self._path, "a trace"):
                self._file.write("\n]\n")
                self._file.close()

    def _span(
        self,
        process: int,
        track: str,
        name: str,
        category: str,
        interval: tuple[float, float],
        facts: Mapping[str, object],
    ) -> None:
        begin, end = interval
        self._event(
            {
                "name": name,
                "cat": category,
                "ph": "X",
                "ts": round((begin - self._start) * 1e6),
                "dur": round((end - begin) * 1e6),
                "args": facts,
                "pid": process,
                "tid": self._track(process, track),
            }
        )

    def _track(self, process: int, track: str) -> int:
        key = (process, track)
        if key not in self._tracks:
            self._tracks[key] = len(self._tracks)
            self._name("thread_name", process, self._tracks[key], track)
        return self._tracks[key]

    def _name(self, kind: str, process: int, track: int, title: str) -> None:
        self._event(
            {"name": kind, "ph": "M", "pid": process, "tid": track, "args": {"name": title}}
        )

    def _event(self, event: dict[str, object]) -> None:
        with writing(self._path, "a trace"):
            self._file.write(self._separator + json.dumps(event))
        self._separator = ",\n"

"""Trace of spans in trace/spans.json, which Perfetto and chrome://tracing open offline.

The trace has two processes: the driver, with one track per phase, and the roles, with one track per
worker. Times are microseconds on the driver's clock since the trace began.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from orchestrator.run_files.folder import RunFolder
from orchestrator.telemetry.role_time import RoleSpan
from orchestrator.telemetry.sinks import Warn

_DRIVER, _ROLES = 0, 1
_MOST_BYTES = 32 << 20  # of one file: about 10,000 PPO iterations
_MOST_FILES = 4  # the newest files are kept


class Trace:
    """The trace files of one process of a run.

    A long run continues in another file, and only the newest files are kept. The format allows a
    missing closing bracket, so the files of a killed run are readable. The run does not need them:
    if one cannot be written, the run warns once and continues without a trace.
    """

    def __init__(self, folder: RunFolder, warn: Warn) -> None:
        """Open a new file; files of earlier processes of the run stay.

        Args:
            folder: A created run folder.
            warn: Called once if the trace cannot be written.
        """
        self._folder = folder.trace
        self._warn = warn
        self._start = time.monotonic()
        self._open()

    def _open(self) -> None:
        """Open the next file."""
        number = max(map(_number, self._folder.glob("spans*.json")), default=-1) + 1
        self._path = self._folder / (f"spans-{number}.json" if number else "spans.json")
        self._file: TextIO | None = None
        self._separator = "\n"
        self._size = 0
        self._tracks: dict[tuple[int, str], int] = {}
        try:
            self._file = self._path.open("w", encoding="utf-8")
            self._write("[")
            ours = [path for path in self._folder.glob("spans*.json") if _number(path) >= 0]
            for path in sorted(ours, key=_number)[:-_MOST_FILES]:
                path.unlink(missing_ok=True)
        except OSError as error:
            self._give_up(error)
        for process, title in ((_DRIVER, "driver"), (_ROLES, "roles")):
            self._name("process_name", process, 0, title)

    def phase(self, stage: str, step: int | None, phase: str, begin: float, seconds: float) -> None:
        """Add a span of the driver, on one track per phase: spans of a track must not overlap."""
        facts = {"stage": stage, "step": step}
        self._span(_DRIVER, phase, phase, stage, (begin, begin + seconds), facts)
        self._write("", flush=True)
        if self._file is not None and self._size > _MOST_BYTES:
            self.close()
            self._open()

    def call(self, span: RoleSpan) -> None:
        """Add a call on the track of its worker."""
        facts = {"transfer_ms": round(span.transfer * 1e3, 3)}
        track = f"{span.role} {span.rank}"
        self._span(_ROLES, track, span.verb, span.role, (span.begin, span.end), facts)

    def close(self) -> None:
        """Close the bracket and the file."""
        self._write("\n]\n", flush=True)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, text: str, *, flush: bool = False) -> None:
        if self._file is None:
            return
        try:
            self._size += self._file.write(text)
            if flush:
                self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # close tries to write the buffer again
                file.close()
        self._warn(
            f"the trace ends here, the run continues without it: {self._path} cannot be written: "
            f"{error.strerror}"
        )

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
        self._write(self._separator + json.dumps(event))
        self._separator = ",\n"


def _number(path: Path) -> int:
    """The number of a trace file: spans.json is 0, spans-3.json is 3; -1 for any other file."""
    number = path.stem.removeprefix("spans").removeprefix("-") or "0"
    return int(number) if number.isdecimal() else -1

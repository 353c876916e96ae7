"""Child processes for what may hang, end its process, or fill it with libraries.

A child works through its steps and writes one JSON line per step: its beginning, then its answer or
its error. It is killed with all its processes at its deadline.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workers.errors import DeadlineError, RoleError
from workers.process.child_processes import end_group, module_command, module_environment
from workers.process.disk import temporary_folder
from workers.process.user_code import words_of_output

_POLL_SECONDS = 0.02
MODULE = "orchestrator.doctor.child"


class Child:
    """A process of `orchestrator.doctor.child`, started on creation."""

    def __init__(
        self,
        kind: str,
        folder: Path,
        seconds: float,
        arguments: object = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it.

        Args:
            kind: Which steps it does: a key of `child.STEPS`.
            folder: An empty folder for its files.
            seconds: When it is killed, from now on.
            arguments: What its steps need; anything that can be pickled.
            environment: Variables of its process on top of this one's.
        """
        self._kind, self._seconds = kind, seconds
        self._deadline = time.monotonic() + seconds
        self._answers, self._log = folder / "answers", folder / "log"
        self._lock = threading.Lock()
        self._late = False  # killed at its deadline
        self._answers.touch()
        (folder / "arguments").write_bytes(pickle.dumps(arguments))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                module_command(MODULE, kind, str(folder), str(seconds)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=module_environment() | dict(environment or {}),
                start_new_session=True,
            )

    def of(self, step: str) -> Any:
        """See `Answers`."""
        while True:
            with self._lock:  # several checks wait for one child
                over = self._process.poll() is not None
                if not over and time.monotonic() > self._deadline:
                    self._late = True
                    self.end()
            lines = self._lines()
            answer = next((line for line in lines if line.get("done") == step), None)
            if answer is not None:
                return self._opened(answer)
            if over or self._late:
                raise self._silent(lines)
            time.sleep(_POLL_SECONDS)

    def end(self) -> None:
        """Kill it, with the processes that it started."""
        end_group(self._process)

    def _lines(self) -> list[dict[str, Any]]:
        whole = self._answers.read_text(encoding="utf-8").rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def _opened(self, answer: dict[str, Any]) -> Any:
        error = answer.get("error")
        if error is not None:
            raise RoleError(error["what"], where=error["where"], fix=error["fix"])
        return answer["value"]

    def _silent(self, lines: list[dict[str, Any]]) -> RoleError:
        if failed := next((line for line in lines if line.get("error")), None):
            self._opened(failed)  # without it the later steps were not tried
        begun = [line["begin"] for line in lines if "begin" in line]
        at = f" in its step {begun[-1]}" if begun else ""
        said = words_of_output(self._log)
        if self._late:
            return DeadlineError(
                f"the process that looks at {self._kind} did not end within {self._seconds:g} s{at}"
                f"{said}",
                fix="the machine is overloaded, or a driver, a server or a file system hangs",
            )
        code = self._process.returncode
        return RoleError(
            f"the process that looks at {self._kind} ended with exit code {code}{at}{said}",
            fix="a library ends the process that imports it: set up .venv again (`make setup`)",
        )


class Absent:
    """Answers of a child that is not started."""

    def of(self, step: str) -> Any:
        """See `Answers`."""
        raise AssertionError(f"no process was started for {step}")


@contextmanager
def child_folders() -> Iterator[Path]:
    """A folder for the files of the children, deleted at the end.

    Raises:
        CheckpointError: it cannot be made, because the disk is full or read-only.
    """
    with temporary_folder("rehearsal-doctor-") as folder:
        yield Path(folder)

"""What a check is, and how checks run: one after the other in a child process, with deadlines."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from workers.process.child_processes import end_group, module_command, module_environment
from workers.process.user_code import words_of_output

Figures = dict[str, Any]  # JSON-ready
Status = Literal["passed", "failed", "skipped"]

_POLL_SECONDS = 0.02
_START_SECONDS = 120.0  # for the imports of a child process; a cold disk takes half of it
_CHILD = "benchmarks.gpu.child"
_TIME_IS_OVER = "the time for all checks is over (--minutes)"


class CannotRunError(Exception):
    """This machine cannot run the check; the message is the reason."""


class ViolatedError(Exception):
    """The product does not do what the check requires."""


@dataclass(frozen=True)
class Bench:
    """Where and how checks run."""

    device: Literal["cpu", "cuda"]
    quick: bool  # small sizes: a dry run of the checks themselves, whose times mean nothing
    folder: Path  # for their files; the same for all of them

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"


@dataclass(frozen=True)
class Check:
    """One check; `seconds` is its deadline."""

    name: str
    run: Callable[[Bench], Figures]
    seconds: float
    needs: tuple[str, ...] = ()  # Python packages without which it is skipped


@dataclass(frozen=True)
class Outcome:
    """What one check found."""

    number: int  # from 1, in the order of the list
    name: str
    status: Status
    seconds: float
    reason: str = ""  # of a failure, or why it was skipped
    figures: Figures = field(default_factory=dict)

    def line(self) -> str:
        shown = ", ".join(f"{k} {_short(v)}" for k, v in self.figures.items() if _fits(v))
        return (
            f"{self.number:>2} {self.name:<30} {self.status:<8}{self.seconds:>7.1f} s  "
            f"{self.reason or shown}"
        )


def require(holds: bool, what: str) -> None:
    """Raise ViolatedError unless a requirement holds."""
    if not holds:
        raise ViolatedError(what)


def run_checks(module: str, bench: Bench, minutes: float) -> Iterator[Outcome]:
    """Run the checks of a module's list `CHECKS`; yields one outcome per check, in order.

    They share one child process, so that libraries are imported once. A check that hangs beyond
    its deadline or ends its process has failed, and the others continue in a new process. If the
    first one fails, which looks at the device itself, the others are skipped.

    Args:
        module: Import path of the module.
        bench: Where they run.
        minutes: Limit for all; a check that does not end within it has failed.

    Raises:
        ViolatedError: the list cannot be imported.
    """
    end = time.monotonic() + 60 * minutes
    child = _Child(module, bench, 0)
    try:
        listed = child.listed()
        number = 0
        while number < len(listed):
            late = min(child.begun + listed[number]["seconds"], end)
            outcome = child.outcome(number + 1, listed[number]["name"], late)
            yield outcome
            number += 1
            if number == 1 and outcome.status == "failed":
                yield from _left(listed, 1, "skipped", "check 1 failed")
                return
            if time.monotonic() > end:
                yield from _left(listed, number, "failed", _TIME_IS_OVER)
                return
            if child.ended and number < len(listed):
                child = _Child(module, bench, number)
                child.listed()
    finally:
        child.end()


def _left(
    listed: Sequence[dict[str, Any]], number: int, status: Status, why: str
) -> Iterator[Outcome]:
    """The outcome of every check after the first `number`."""
    for at, check in enumerate(listed[number:], start=number + 1):
        yield Outcome(at, check["name"], status, 0.0, why)


class _Child:
    """A process of `benchmarks.gpu.child`, started on creation."""

    def __init__(self, module: str, bench: Bench, done: int) -> None:
        self._answers = bench.folder / f"answers_{done}"
        self._log = bench.folder / f"log_{done}"
        self._answers.touch()
        self.begun = time.monotonic()  # when the current check began
        self.ended = False
        quick = ["quick"] if bench.quick else []
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                module_command(
                    _CHILD, module, str(done), bench.device, str(bench.folder), *quick
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=module_environment(),
                start_new_session=True,
            )  # fmt: skip

    def listed(self) -> list[dict[str, Any]]:
        """Name and deadline of each check, once the process has imported them."""
        answer = self._answer(0, self.begun + _START_SECONDS)
        if answer is None:
            raise ViolatedError(f"the checks do not start: {self._why()}")
        self.begun = time.monotonic()
        return answer["checks"]

    def outcome(self, number: int, name: str, late: float) -> Outcome:
        """The outcome of the check that runs; ends the process if there is none by `late`."""
        answer = self._answer(number, late)
        seconds = time.monotonic() - self.begun
        self.begun = time.monotonic()
        if answer is None:
            why = self._why()
            self.end()
            return Outcome(number, name, "failed", seconds, why)
        return Outcome(
            number, name, answer["status"], answer["seconds"], answer.get("reason", ""),
            answer.get("figures", {}),
        )  # fmt: skip

    def _answer(self, number: int, late: float) -> dict[str, Any] | None:
        """The line of one check; None if the process ended without it, or was too late."""
        while True:
            over = self._process.poll() is not None
            lines = self._answers.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
            for line in map(json.loads, lines):
                if line["number"] == number:
                    return line
            if over or time.monotonic() > late:
                return None
            time.sleep(_POLL_SECONDS)

    def _why(self) -> str:
        said = words_of_output(self._log)
        code = self._process.poll()
        if code is not None:
            return f"its process ended with exit code {code}{said}"
        return f"no answer within {time.monotonic() - self.begun:.0f} s{said}"

    def end(self) -> None:
        """Kill it, with the processes that it started."""
        self.ended = True
        end_group(self._process)


def _fits(value: object) -> bool:
    return isinstance(value, (int, float, str))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

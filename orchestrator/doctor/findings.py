"""What a check finds, and the runner of checks: each has a deadline, and no error escapes it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from orchestrator.doctor.subject import Subject
from orchestrator.process.command_exit import described
from workers.errors import RehearsalError
from workers.process.caught_errors import Caught


class State(Enum):
    """Outcome of a check."""

    ok = "ok"
    warn = "warn"
    """A run works, but worse than it could, or not on every day."""
    fail = "fail"
    """A run fails."""
    skip = "skip"
    """There is nothing to check."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Outcome of a check, what was seen, and how to fix it."""

    state: State
    what: str
    fix: str = ""


def good(what: str) -> Finding:
    """Nothing stops a run."""
    return Finding(State.ok, what)


def warning(what: str, fix: str) -> Finding:
    """A run works, but not well."""
    return Finding(State.warn, what, fix)


def failure(what: str, fix: str) -> Finding:
    """A run fails."""
    return Finding(State.fail, what, fix)


def skipped(why: str) -> Finding:
    """There is nothing to check."""
    return Finding(State.skip, why)


def of_error(error: RehearsalError) -> Finding:
    """The failure that a typed error describes."""
    where = f" ({error.where})" if error.where else ""
    return failure(f"{error.what}{where}", error.fix)


@dataclass(frozen=True, slots=True)
class Check:
    """One check; `seconds` is its deadline."""

    name: str
    look: Callable[[Subject], Finding]
    seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Result:
    """The finding of a check."""

    number: int  # from 1, in the order of the list
    name: str
    finding: Finding


def run_checks(checks: Sequence[Check], subject: Subject) -> Iterator[Result]:
    """Run all checks at the same time; yields their findings in the order of the list.

    Each runs in a daemon thread, so that a system call that never returns (a dead network file
    system) delays neither the others nor the end of the process.
    """
    began = time.monotonic()
    running = [_Running(check, subject) for check in checks]
    for number, each in enumerate(running, start=1):
        yield Result(number, each.check.name, each.finding(began))


class _Running:
    """A check in its thread."""

    def __init__(self, check: Check, subject: Subject) -> None:
        self.check = check
        self._subject = subject
        self._found: Finding | None = None
        self._thread = threading.Thread(target=self._run, name=check.name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        caught = Caught(Exception)  # a check may meet any error of the system it looks at
        found: Finding | None = None
        with caught:
            found = self.check.look(self._subject)
        if isinstance(caught.error, RehearsalError):
            found = of_error(caught.error)
        elif caught.error is not None:
            found = failure(
                f"the check cannot be made: {described(caught.error)}",
                "the message names what this machine refuses; without it the cause is an error in "
                "the check",
            )
        self._found = found

    def finding(self, began: float) -> Finding:
        self._thread.join(max(0.0, began + self.check.seconds - time.monotonic()))
        return self._found or failure(
            f"no answer within {self.check.seconds:g} s",
            "what it looks at does not answer: see whether a network file system, a driver or a "
            "server hangs",
        )

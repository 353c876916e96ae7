"""Runs hostile inputs one by one and sorts what became of them.

A case either ends in an error that the product raises on purpose, or is accepted. Everything else
is a fault: another exception (untyped), or no answer within the deadline (hang). What is accepted
is listed by the reason that the case gives, so that a reader can argue about each reason.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal, TextIO

from workers.errors import RehearsalError

# Of the wall clock, hence far above the limit of 2 CPU seconds that a template has per dialogue.
DEADLINE_SECONDS = 60

Outcome = Literal["typed", "accepted", "untyped", "hang"]


@dataclass(frozen=True, slots=True)
class Case:
    """One hostile input.

    Attributes:
        name: Says what was done, e.g. "kl.limit=nan" or "index names ../other.safetensors".
        run: Hands the input to the product, as a user's command would.
        accepted_because: Why accepting it is right, e.g. "an unused key"; "" where accepting it is
            a fault, too.
    """

    name: str
    run: Callable[[], object]
    accepted_because: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one case."""

    case: Case
    outcome: Outcome
    detail: str = ""  # first line of the message; of a fault: where it was raised

    @property
    def fault(self) -> bool:
        """Whether the product has to change, or the case has to say why not."""
        silent = self.outcome == "accepted" and not self.case.accepted_because
        return self.outcome in ("untyped", "hang") or silent


@dataclass(slots=True)
class Tally:
    """The results of one kind of input."""

    kind: str
    results: list[Result] = field(default_factory=list)

    def count(self, outcome: Outcome) -> int:
        return sum(each.outcome == outcome for each in self.results)

    @property
    def faults(self) -> list[Result]:
        return [each for each in self.results if each.fault]

    def write(self, out: TextIO) -> None:
        counts = ", ".join(
            f"{self.count(outcome)} {outcome}"
            for outcome in ("typed", "accepted", "untyped", "hang")
        )
        out.write(f"{self.kind}: {len(self.results)} cases: {counts}\n")
        for each in self.faults:
            out.write(f"  FAULT {each.outcome}: {each.case.name}: {each.detail}\n")
        reasons: dict[str, list[str]] = {}
        for each in self.results:
            if each.outcome == "accepted" and not each.fault:
                reasons.setdefault(each.case.accepted_because, []).append(each.case.name)
        for reason, names in sorted(reasons.items()):
            out.write(f"  accepted {len(names)}: {reason} (such as {names[0]})\n")


class _Late(BaseException):  # passes through `except Exception` of what is tested
    pass


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    def late(_signal: int, _frame: FrameType | None) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """What the product prints goes nowhere."""
    with Path(os.devnull).open("w") as nowhere:
        out, err = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, err


def judge(case: Case, seconds: float = DEADLINE_SECONDS) -> Result:
    """Run one case and say what became of it."""
    try:
        with _quiet(), _deadline(seconds):
            case.run()
    except RehearsalError as error:
        if not error.what.strip():
            return Result(case, "untyped", f"{type(error).__name__} without a word")
        return Result(case, "typed", error.what.splitlines()[0])
    except _Late:
        return Result(case, "hang", f"no answer within {seconds:g} s")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  that is what is looked for
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return Result(case, "untyped", f"{type(error).__name__} at {where}: {str(error)[:160]}")
    return Result(case, "accepted")

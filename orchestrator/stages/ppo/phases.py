"""Phases of a PPO iteration as spans of the trace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

from orchestrator.roles.interfaces import Answer
from orchestrator.telemetry.recorder import Telemetry

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Phases:
    """Spans from the start of a call to its result; concurrent ones overlap."""

    telemetry: Telemetry
    stage: str
    step: int

    def timed(self, phase: str, answer: Answer[T]) -> TimedAnswer[T]:
        """The same answer; waiting for it ends the span that starts now."""
        return TimedAnswer(answer, self.begin(phase))

    def begin(self, phase: str) -> Callable[[], None]:
        """Start the span of a phase; the returned function ends it."""
        return self.telemetry.begin(self.stage, self.step, phase)

    def span(self, phase: str) -> AbstractContextManager[None]:
        """Span of a phase during which the driver waits."""
        return self.telemetry.span(self.stage, self.step, phase)


@dataclass(frozen=True, slots=True)
class TimedAnswer(Generic[T]):
    """An answer that ends a span when it arrives."""

    answer: Answer[T]
    end: Callable[[], None]

    def result(self) -> T:
        """Wait for the call and end its span."""
        value = self.answer.result()
        self.end()
        return value

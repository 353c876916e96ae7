"""Starts of absent engines in the background, while their peers serve.

Absent are lost engines, and extra ones for which the cluster had no room yet.

    resting -> starting -> standing        any failure on the way: resting again, for longer
       resting -> given up (its restarts are used up)

A resting engine waits for its restart delay, or for room; a standing one has started but has no
current weights. Nothing here blocks: `look` advances each engine as far as is possible now. The
group takes a standing engine back when it next gives all engines the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from workers.errors import RehearsalError, RoleDiedError


class Starting(Protocol):
    """The pending start of an engine."""

    @property
    def ready(self) -> bool:
        """Whether `result` would not block."""
        ...

    def result(self) -> object:
        """Wait for the start; raises the error with which it failed."""
        ...


class Starter(Protocol):
    """What the group does for an absent engine."""

    def may_begin(self, rank: int) -> bool:
        """Whether its restart delay is over."""
        ...

    def begin(self, rank: int) -> Starting:
        """Start the engine; RoleDiedError if its restarts are used up."""
        ...

    def stands(self, rank: int) -> bool:
        """Whether a standing engine is still alive."""
        ...

    def failed(self, rank: int, error: RehearsalError) -> None:
        """Handle a failed start, or a loss before the engine served."""
        ...

    def give_up(self, rank: int, error: RoleDiedError) -> None:
        """Handle the final loss of an engine; raises if the run cannot continue without it."""
        ...


@dataclass(slots=True)
class _Engine:
    extra: bool = False  # may never get room
    starting: Starting | None = None
    standing: bool = False
    given_up: bool = False


class ReturningEngines:
    """The absent engines of one group."""

    def __init__(self, starter: Starter) -> None:
        self._starter = starter
        self._engines: dict[int, _Engine] = {}
        self._looking = False

    def __contains__(self, rank: int) -> bool:
        return rank in self._engines

    @property
    def hopeless(self) -> bool:
        """Whether no absent engine is certain to be tried again."""
        return all(
            each.given_up or (each.extra and each.starting is None and not each.standing)
            for each in self._engines.values()
        )

    @property
    def standing(self) -> list[int]:
        """Engines that are ready to receive weights."""
        return [rank for rank, each in sorted(self._engines.items()) if each.standing]

    @property
    def coming(self) -> bool:
        """Whether any engine is resting or starting."""
        return any(not each.standing and not each.given_up for each in self._engines.values())

    def add(self, rank: int, *, given_up: bool = False, extra: bool = False) -> None:
        """Add an engine that was lost, that was given up before this group existed, or an extra."""
        self._engines[rank] = _Engine(extra=extra, given_up=given_up)

    def take(self, rank: int) -> None:
        """Remove a standing engine, which the group takes back."""
        assert self._engines[rank].standing
        del self._engines[rank]

    def lost(self, rank: int, error: RehearsalError) -> None:
        """Record that a standing engine was lost before it served."""
        self._engines[rank].standing = False
        self._starter.failed(rank, error)

    def look(self) -> None:
        """Advance every engine as far as possible without blocking; a nested call does nothing."""
        if self._looking:  # waiting for the start's result calls `look` again
            return
        self._looking = True
        try:
            for rank in sorted(self._engines):
                self._look(rank, self._engines[rank])
        finally:
            self._looking = False

    def _look(self, rank: int, each: _Engine) -> None:
        if each.given_up:
            return
        if each.standing:
            if not self._starter.stands(rank):
                self.lost(rank, RoleDiedError("lost before it served again"))
        elif each.starting is not None:
            if each.starting.ready:
                self._finish(rank, each, each.starting)
        elif self._starter.may_begin(rank):
            try:
                each.starting = self._starter.begin(rank)
            except RoleDiedError as error:
                each.given_up = True
                self._starter.give_up(rank, error)

    def _finish(self, rank: int, each: _Engine, starting: Starting) -> None:
        each.starting = None
        try:
            starting.result()
            each.standing = True
        except RehearsalError as error:
            self._starter.failed(rank, error)

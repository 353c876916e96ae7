"""Engines that were lost and come back in the background, while their peers do their work.

    resting -> starting -> standing        any failure on the way: resting again, for longer
       resting -> given up (its restarts are used up)

Nobody waits here: `look` takes each engine one step further, as far as that is possible now. The
group takes an engine that stands back when it next gives all engines the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from workers.errors import RehearsalError, RoleDiedError


class Starting(Protocol):
    """A process that was asked to start."""

    @property
    def ready(self) -> bool:
        """Whether `result` has something to say at once."""
        ...

    def result(self) -> object:
        """What the start came to; raises why it failed."""
        ...


class Starter(Protocol):
    """What the group does for an engine that is away."""

    def may_begin(self, rank: int) -> bool:
        """Whether it has rested long enough."""
        ...

    def begin(self, rank: int) -> Starting:
        """Start it; RoleDiedError if its restarts are used up."""
        ...

    def stands(self, rank: int) -> bool:
        """Whether an engine that stands still does."""
        ...

    def failed(self, rank: int, error: RehearsalError) -> None:
        """Its start came to nothing, or it was lost before it served."""
        ...

    def give_up(self, rank: int, error: RoleDiedError) -> None:
        """It does not come back; raises if the run cannot go on without it."""
        ...


@dataclass(slots=True)
class _Engine:
    starting: Starting | None = None
    standing: bool = False
    given_up: bool = False


class Absence:
    """The engines of one group that are away."""

    def __init__(self, starter: Starter) -> None:
        self._starter = starter
        self._engines: dict[int, _Engine] = {}
        self._looking = False

    def __contains__(self, rank: int) -> bool:
        return rank in self._engines

    @property
    def hopeless(self) -> bool:
        """Whether none of them comes back."""
        return all(each.given_up for each in self._engines.values())

    @property
    def standing(self) -> list[int]:
        """Those that could be given weights."""
        return [rank for rank, each in sorted(self._engines.items()) if each.standing]

    @property
    def coming(self) -> bool:
        """Whether any of them is on its way and does not stand yet."""
        return any(not each.standing and not each.given_up for each in self._engines.values())

    def add(self, rank: int, *, given_up: bool = False) -> None:
        """An engine was lost, or was given up before this group was made."""
        self._engines[rank] = _Engine(given_up=given_up)

    def take(self, rank: int) -> None:
        """An engine that stands is one of the group again."""
        assert self._engines[rank].standing
        del self._engines[rank]

    def lost(self, rank: int, error: RehearsalError) -> None:
        """An engine that stood was lost before it served."""
        self._engines[rank].standing = False
        self._starter.failed(rank, error)

    def look(self) -> None:
        """Take every engine as far as it gets without waiting; harmless within itself."""
        if self._looking:  # what starts is asked for by a call that looks here, too
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

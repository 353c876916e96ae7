"""The process in which environments live: each step has a deadline.

An environment that hangs, or ends its process, takes the process with it. The others are then made
again in the next process, and given their earlier texts again: only its own sequence is lost.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workers.errors import ConfigError
from workers.user_functions.child_process import Child, EndedError

_log = logging.getLogger(__name__)
_IMPORT_SECONDS = 60.0  # of the user's module in a process that replaces another
LATE = "environment did not answer in time"
GONE = "environment could not be imported again"


@dataclass(frozen=True, slots=True)
class Played:
    """The turns that were played, each (observation, reward, done), or why they were not."""

    turns: tuple[tuple[str, float, bool], ...] = ()
    reason: str = ""
    words: str = ""


class EnvironmentProcess:
    """Environments in a child process, which ends when this object is garbage-collected.

    Args:
        path: As `workers.user_functions.environment_function.load_players` has it.
        folder: First folder of the search for modules of the user.
        step_seconds: Deadline of a step, and of making an environment.

    Raises:
        ConfigError: The factory cannot be imported.
    """

    def __init__(self, path: str, folder: str, step_seconds: float) -> None:
        self._path, self._folder, self._seconds = path, folder, step_seconds
        self._there: dict[int, int] = {}  # sequence -> texts that its environment was given
        self._child: Child | None = self._begin()
        try:
            wrong = self._child.imported(math.inf)
        except EndedError:
            raise ConfigError(
                f"importing {path!r} ended its process: {self._end(by_itself=True)}",
                where="environment.factory",
                fix="a module must not end the process that imports it",
            ) from None
        if wrong:
            self._end()
            raise ConfigError(wrong["what"], where=wrong["where"], fix=wrong["fix"])

    def play(self, name: int, row: dict[str, Any], seed: int, texts: Sequence[str]) -> Played:
        """Give an environment the last of the texts, and those before it if it is made again."""
        if self._child is not None and self._child.ended:  # between two steps: nobody's fault
            self._end()
        child = self._child = self._child or self._begin()
        try:
            if child.imported(time.monotonic() + _IMPORT_SECONDS):
                raise EndedError
        except (TimeoutError, EndedError):
            self._end()
            return Played(reason=GONE)
        known = self._there.pop(name, 0)
        steps = 1 if known else 1 + len(texts)  # one to make it
        try:
            child.tell({"id": name, "row": row, "seed": seed, "texts": list(texts)})
            played = _read(child.hear(time.monotonic() + steps * self._seconds))
        except TimeoutError:
            _log.warning("the environment of sequence %d was late", name)
            self._end()
            return Played(reason=LATE, words=f"{self._seconds:g} s for a step")
        except EndedError:
            how = self._end(by_itself=True)
            _log.warning("the environment of sequence %d ended its process: %s", name, how)
            return Played(reason=f"environment ended its process: {how}")
        except BaseException:  # the next call must not read the answer to this one
            self._end()
            raise
        if played.turns and not played.turns[-1][2]:
            self._there[name] = len(texts)
        return played

    def forget(self) -> None:
        """Drop all environments; the process stays."""
        self._there = {}
        if self._child is None:
            return
        try:
            self._child.tell({})
            self._child.hear(time.monotonic() + self._seconds)
        except (TimeoutError, EndedError):
            self._end()

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._end()

    def _begin(self) -> Child:
        return Child("environment", self._path, self._folder)

    def _end(self, *, by_itself: bool = False) -> str:
        assert self._child is not None
        child, self._child, self._there = self._child, None, {}
        return child.end(by_itself=by_itself)


def _read(message: Any) -> Played:
    """The answer of the child; raises EndedError for anything else: user code can write there."""
    match message:
        case {"reason": str(reason), "words": str(words)} if reason:
            return Played(reason=reason, words=words)
        case {"turns": [*turns]} if turns:
            return Played(tuple(_turn(each) for each in turns))
        case _:
            raise EndedError


def _turn(fields: Any) -> tuple[str, float, bool]:
    match fields:
        case [str(observation), float(reward), bool(done)] if math.isfinite(reward):
            return observation, reward, done
        case _:
            raise EndedError

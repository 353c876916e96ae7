"""Waiting for actors: every wait has a deadline, and the first failure ends it.

`ray.get` on a list blocks on the first element while another rank is already dead, and waits for
ever by default. Nothing in the orchestrator calls it directly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from workers.errors import DeadlineError, RehearsalError, RoleDiedError, RoleError

T = TypeVar("T")
_GLANCE_SECONDS = 1.0  # a small record that is there, perhaps on another node
_PEER_SECONDS = 2.0  # Ray reports a death within half a second


@dataclass(slots=True)
class Position:
    """Where the run is; every error of a wait names it."""

    stage: str = "start"
    step: int = 0

    def __str__(self) -> str:
        return f"stage {self.stage}, step {self.step}"


class Pending(Generic[T]):
    """Calls in flight on the ranks of one role, and how their results combine."""

    def __init__(
        self,
        refs: Sequence[Any],
        names: Sequence[str],
        doing: str,
        seconds: float,
        position: Position,
        combine: Callable[[list[Any]], T],
    ) -> None:
        self._refs = list(refs)
        self._names = list(names)
        self._doing = f"{doing} ({position})"
        self._deadline = time.monotonic() + seconds
        self._seconds = seconds
        self._combine = combine

    def result(self) -> T:
        """Wait for every rank; raise as soon as one fails or the deadline passes."""
        index = {ref: i for i, ref in enumerate(self._refs)}
        results: list[Any] = [None] * len(self._refs)
        left = list(self._refs)
        while left:
            remaining = max(0.0, self._deadline - time.monotonic())
            done, left = ray.wait(left, num_returns=1, timeout=remaining)
            if not done:
                silent = ", ".join(self._names[index[ref]] for ref in left)
                raise _late(self._seconds, self._doing, silent)
            for ref in done:
                try:
                    results[index[ref]] = self._fetch(ref, self._names[index[ref]])
                except RoleError as error:
                    if type(error) is RoleError:
                        self._name_the_dead([(other, self._names[index[other]]) for other in left])
                    raise
        return self._combine(results)

    def _name_the_dead(self, others: list[tuple[Any, str]]) -> None:
        """Raise RoleDiedError if a peer of a rank that failed has died.

        Who waits in a collective for a dead peer fails too, and often before Ray has noticed the
        death: its own error would name the wrong rank.
        """
        until = time.monotonic() + _PEER_SECONDS
        for ref, name in others:
            done, _ = ray.wait([ref], timeout=max(0.0, until - time.monotonic()))
            if done:
                try:
                    self._fetch(ref, name)
                except RoleDiedError:
                    raise
                except RehearsalError:
                    continue  # another victim

    def _fetch(self, ref: Any, name: str) -> Any:
        return fetch(ref, name, self._doing, self._deadline - time.monotonic())


class Arrivals:
    """Records of streaming calls, each as soon as it is there.

    A call yields a small record, which is fetched here, and then a large one, which stays where it
    is and of which the reference is handed on.
    """

    def __init__(self, doing: str, seconds: float, position: Position) -> None:
        self._doing = f"{doing} ({position})"
        self._seconds = seconds
        self._ranks: dict[Any, tuple[int, str]] = {}  # open stream -> rank and its name

    def add(self, stream: Any, rank: int, name: str) -> None:
        """Listen to one more call."""
        self._ranks[stream] = (rank, name)

    def next(self) -> tuple[int, Any, Any] | None:
        """Rank, small record and reference of what comes next; None when all calls have ended.

        Raises:
            DeadlineError: nothing came, and no call ended, for the deadline of a call.
            RehearsalError: the typed error of the first call that failed.
        """
        while self._ranks:
            streams = list(self._ranks)
            done, _ = ray.wait(streams, num_returns=1, timeout=self._seconds, fetch_local=False)
            if not done:
                silent = ", ".join(dict.fromkeys(name for _, name in self._ranks.values()))
                raise _late(self._seconds, self._doing, silent)
            stream: Any = done[0]
            rank, name = self._ranks[stream]
            try:
                small = next(stream)
            except StopIteration:
                del self._ranks[stream]
                continue
            record = fetch(small, name, self._doing, self._seconds)
            return rank, record, next(stream)
        return None


def _late(seconds: float, doing: str, silent: str) -> DeadlineError:
    return DeadlineError(
        f"no answer within {seconds:.0f} s: {doing}",
        where=silent,
        mend="if the work takes that long raise run.call_seconds, or run.role_start_seconds for a "
        "start or a load; else look at the role's log for what it hangs on",
    )


def fetch(ref: Any, name: str, doing: str, seconds: float) -> Any:
    """The record behind a reference; raises the typed error of the call that should make it."""
    try:
        return ray.get(ref, timeout=max(1.0, seconds))
    except RayTaskError as error:
        raise _as_typed(error, name, doing) from error
    except RayActorError as error:
        raise RoleDiedError(
            f"the process of {name} ended: {doing}",
            where=name,
            mend="its last words are in the Ray session's logs; out of memory shows as "
            f"signal 9 ({str(error).splitlines()[0]})",
        ) from error
    except GetTimeoutError as error:
        raise DeadlineError(
            f"the result of {name} did not arrive: {doing}",
            where=name,
            mend="check the network between the nodes and the object store's size",
        ) from error
    except RayError as error:
        raise RoleError(f"{doing}: {error}", where=name) from error


def _as_typed(error: RayTaskError, name: str, doing: str) -> RehearsalError:
    """The typed error that the role raised, or a RoleError that quotes any other."""
    cause = error.cause
    if isinstance(cause, RehearsalError):
        cause.where = f"{cause.where}; {name}, {doing}" if cause.where else f"{name}, {doing}"
        return cause
    if isinstance(cause, (MemoryError, torch.OutOfMemoryError)):
        return RoleError(
            f"{name} ran out of memory: {str(cause).partition(chr(10))[0]}",
            where=doing,
            mend="lower trainer.micro_batch_tokens or reward.micro_batch_tokens, raise "
            "trainer.zero_stage, or set model.gradient_checkpointing=true; of an engine lower "
            "rollout.max_concurrent_sequences or rollout.gpu_memory_fraction",
        )
    return RoleError(
        f"{name} failed: {type(cause).__name__}: {cause}",
        where=doing,
        mend="this is not an expected failure; error.log in the run folder holds the traceback",
    )


def glance(ref: Any) -> Any:
    """What a call has answered, or None while it runs; whoever waits for it gets its errors."""
    done, _ = ray.wait([ref], timeout=0)
    try:
        return ray.get(ref, timeout=_GLANCE_SECONDS) if done else None
    except RayError:
        return None


def first(results: list[Any]) -> Any:
    """Combine: the result of rank 0."""
    return results[0]


def everything(results: list[Any]) -> list[Any]:
    """Combine: the results of all ranks, in order."""
    return results


def nothing(results: list[Any]) -> None:
    """Combine: no result, only completion."""
    del results

"""What role groups need of the engine that runs workers and carries their records.

`ray_backend.py` implements it with Ray. Another implementation, such as one without processes, runs
the same groups.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workers.records.generation import RolloutBatch, RolloutSummary

Ref = Any  # reference to a record; opaque outside the back end


@dataclass(frozen=True, slots=True)
class WorkerClass:
    """The class of a worker, by name: the driver need not import it and its libraries."""

    module: str
    name: str
    overlapping: int = 0  # calls with `overlaps` that a worker of the class runs at the same time

    def load(self) -> type:
        """Import the class."""
        return getattr(importlib.import_module(self.module), self.name)


@dataclass(frozen=True, slots=True)
class Stored:
    """An argument of a call: records that the called worker fetches."""

    refs: tuple[Ref, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """Which method of a worker is called, and how it answers."""

    verb: str
    # Splits an answer in a large record, which stays with the worker until another one fetches it,
    # and a small one, which is all that the driver fetches. None: all of it is small.
    split: Callable[[Any], tuple[Any, Any]] | None = None
    beside: bool = False  # runs at the same time as the worker's other calls
    overlaps: bool = False  # the same, for calls that mostly wait; as many as the class allows


def data_alone(data: Any) -> tuple[Any, None]:
    """Split: all is large."""
    return data, None


def with_summary(batch: RolloutBatch) -> tuple[RolloutBatch, RolloutSummary]:
    """Split: sequences, and their scalars."""
    return batch, batch.summary()


def in_two(parts: tuple[Any, Any]) -> tuple[Any, Any]:
    """Split: an answer that is such a pair."""
    return parts


class CallError(Exception):
    """A call has no answer; the message says why."""


class CallFailedError(CallError):
    """The worker raised an exception, which is the cause."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.cause = cause


class WorkerGoneError(CallError):
    """The worker's process ended.

    Args:
        why: As far as it is known.
        output: Where its last words are, for people; "" if unknown.
    """

    def __init__(self, why: str, output: str = "") -> None:
        super().__init__(why)
        self.output = output


class NotArrivedError(CallError):
    """The answer did not arrive in time."""


class StoreFullError(CallError):
    """There is no room for records."""


class Backend(Protocol):
    """Creates workers, calls them, and waits for what they answer."""

    def create(self, worker: WorkerClass, rank: int, options: Mapping[str, Any]) -> Any:
        """Start a worker of this class; returns a handle to it."""
        ...

    def start(self, worker: Any, call: Call, *args: Any) -> Any:
        """Start a call; returns the reference to its answer, a `Reply`.

        With `call.split`, two references: to the large record, and to the reply with the small one.
        """
        ...

    def stream(self, worker: Any, call: Call, *args: Any) -> Any:
        """Start a call that answers in parts: an iterator of references to large, small, large...

        The iterator itself can be waited for: it is ready when the next reference is.
        """
        ...

    def tell(self, worker: Any, call: Call, *args: Any) -> None:
        """Start a call that nobody waits for."""
        ...

    def health(self, worker: Any, what: str) -> Ref:
        """Ask the worker's process for its "pulse" or "stacks"; never waits for other calls."""
        ...

    def wait(self, refs: Sequence[Ref], count: int, seconds: float, *, fetch: bool) -> list[Ref]:
        """Those of the references that are ready, once there are `count` or time is up.

        Args:
            refs: References to answers, and streams.
            count: How many to wait for, and how many to return at most.
            seconds: Timeout.
            fetch: Also wait until the records are on this machine.
        """
        ...

    def get(self, ref: Ref, seconds: float) -> Any:
        """Fetch a record.

        Raises:
            CallError: the call that produces it failed, or the record did not arrive.
        """
        ...

    def put(self, record: Any) -> Ref:
        """Store a record of the driver."""
        ...

    def end(self, worker: Any) -> None:
        """End a worker's process."""
        ...

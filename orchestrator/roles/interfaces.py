"""What role groups exchange with the stages: records of references, and answers to calls.

A reference leads to token data on a worker's node; the driver sees per-sequence scalars only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from orchestrator.supervision.backend import Ref, Stored
from workers.records.arrays import IntArray
from workers.records.generation import (
    Delivery,
    RolloutSummary,
)
from workers.records.processes import FileRecord
from workers.records.training import (
    ExperienceSummary,
)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

WHOLE = Delivery()  # all sequences, in one part


@dataclass(frozen=True, slots=True)
class Rollouts:
    """References to sequences, in the shards that the engines returned, and their scalars."""

    shards: tuple[Ref, ...]  # of RolloutBatch
    summary: RolloutSummary
    held: tuple[IntArray, ...]  # ids in each shard; the summary may lack some of them

    @classmethod
    def of(cls, shard: Ref, summary: RolloutSummary) -> Rollouts:
        """The sequences of one shard."""
        return cls((shard,), summary, (summary.ids,))

    def holding(self, ids: IntArray) -> Stored:
        """The shards that a worker on these sequences needs."""
        return _holding(self.shards, self.held, ids)


def joined(parts: Sequence[Rollouts]) -> Rollouts:
    """Several parts as one, in order."""
    names = RolloutSummary.__dataclass_fields__
    columns = [np.concatenate([getattr(p.summary, name) for p in parts]) for name in names]
    shards = tuple(s for p in parts for s in p.shards)
    return Rollouts(shards, RolloutSummary(*columns), tuple(h for p in parts for h in p.held))


def _holding(shards: tuple[Ref, ...], held: Sequence[IntArray], ids: IntArray) -> Stored:
    owners = np.repeat(np.arange(len(shards)), [len(each) for each in held])
    needed = np.unique(owners[np.isin(np.concatenate([*held, ids[:0]]), ids)]).tolist()
    # A worker without sequences, or whose sequences are missing, needs a shard to look into.
    return Stored(tuple(shards[n] for n in needed) or shards[:1])


@dataclass(frozen=True, slots=True)
class Fields:
    """References to one number per token, one shard per rank."""

    shards: tuple[Ref, ...]  # of TokenField
    held: tuple[IntArray, ...]  # ids in each shard

    def holding(self, ids: IntArray) -> Stored:
        """The shards that a worker on these sequences needs."""
        return _holding(self.shards, self.held, ids)


@dataclass(frozen=True, slots=True)
class Experience:
    """References to sequences ready for PPO, one shard per policy rank, and their scalars."""

    shards: tuple[Ref, ...]  # of ExperienceBatch
    summaries: tuple[ExperienceSummary, ...]

    def holding(self, ids: IntArray) -> Stored:
        """The shards that a worker on these sequences needs."""
        return _holding(self.shards, [summary.ids for summary in self.summaries], ids)


class Answer(Protocol[T_co]):
    """A call that has started."""

    def result(self) -> T_co:
        """Wait for the result; raises the typed error of the first rank that failed or was late."""
        ...


class Known(Generic[T]):
    """An answer whose value is known."""

    def __init__(self, value: T) -> None:
        self._value = value

    def result(self) -> T:
        """The value."""
        return self._value


class Generation(Answer[Rollouts], Protocol):
    """A generation that has started; its sequences may come in several parts."""

    def parts(self) -> Iterator[Rollouts]:
        """Each part as soon as it arrives, until all have; each call starts from the first part.

        Raises the typed error of the first engine that failed, died or was late.
        """
        ...


class Saver(Protocol):
    """A role whose state belongs in a checkpoint of the run."""

    def snapshot(self, folder: str) -> Answer[None]:
        """Copy the state; it is written into `folder` while training continues."""
        ...

    def written(self) -> Answer[list[FileRecord]]:
        """The files of the last snapshot, once they are completely written."""
        ...

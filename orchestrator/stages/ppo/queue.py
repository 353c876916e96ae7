"""Queue of batches that are generated ahead of training.

Which weights sample a batch depends only on the configuration, never on timing: with a staleness of
s iterations, batch i is requested at the start of iteration i - s (the first ones at the start of
the stage), from the weights that the engines hold then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from orchestrator.roles.interfaces import Generation
from workers.errors import StalenessError
from workers.records.arrays import IntArray
from workers.records.generation import RolloutSummary


@dataclass(frozen=True, slots=True)
class Batch:
    """The sequences of one iteration, finished or not."""

    iteration: int
    ids: IntArray  # of all sequences that were requested
    generation: Generation


class RolloutQueue:
    """Batches that were requested and not yet taken, in the order of their iterations."""

    def __init__(self, staleness: int, iterations: int, launch: Callable[[int], Batch]) -> None:
        """Prepare the queue; nothing starts yet.

        Args:
            staleness: Iterations that generation may be ahead; 0 = batch i starts in iteration i.
            iterations: Number of batches in all.
            launch: Starts the generation of one iteration's batch.
        """
        self._staleness = staleness
        self._iterations = iterations
        self._launch = launch
        self._waiting: deque[Batch] = deque()

    def fill(self, iteration: int) -> None:
        """Start every batch up to that of `iteration + staleness` that has not been started."""
        first = self._waiting[-1].iteration + 1 if self._waiting else iteration
        for n in range(first, min(iteration + self._staleness + 1, self._iterations)):
            self._waiting.append(self._launch(n))

    def take(self, iteration: int) -> Batch:
        """Remove and return the batch of this iteration, which need not be finished."""
        batch = self._waiting.popleft()
        assert batch.iteration == iteration, f"batch {batch.iteration} before {iteration}"
        return batch

    def adopt(self, batch: Batch) -> None:
        """Append a batch that an earlier process generated."""
        assert not self._waiting or self._waiting[-1].iteration + 1 == batch.iteration
        self._waiting.append(batch)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._waiting)

    @property
    def ids(self) -> IntArray:
        """All sequences of waiting batches."""
        return np.concatenate([*(batch.ids for batch in self._waiting), np.zeros(0, np.int64)])


def require_fresh(summary: RolloutSummary, version: int, staleness: int, where: str) -> None:
    """Reject sequences that began under weights too far behind the trainer's.

    Args:
        summary: Of the sequences that are about to be trained on.
        version: Of the trainer's weights; each update increases it by 1.
        staleness: How many updates a sequence's first token may be behind.
        where: The place, for the error.

    Raises:
        StalenessError: a sequence is further behind; names the oldest.
    """
    if not len(summary):
        return
    lags = version - summary.versions[:, 0]
    if lags.max() > staleness:
        oldest = int(summary.ids[lags.argmax()])
        raise StalenessError(
            f"sequence {oldest} began under weights {int(lags.max())} updates old, allowed are "
            f"{staleness}",
            where=where,
            fix="this is a defect of the loop, not of the configuration: please report it",
        )

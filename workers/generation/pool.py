"""The active jobs of one engine.

Waiting on any job steps the engine, which advances every active job. A job that joins during the
wait for an earlier one therefore fills the slots that finished sequences free, and may be complete
before its own `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from workers.errors import RoleError
from workers.generation.engine import GenerationEngine
from workers.generation.job import Job, Place
from workers.process.heartbeat import beat
from workers.records.generation import RolloutBatch


def nobody() -> Iterable[Job]:
    """No other jobs."""
    return ()


def never() -> bool:
    """Never stop early."""
    return False


class Pool:
    """Steps an engine. Not thread-safe."""

    def __init__(self, engine: GenerationEngine) -> None:
        self.engine = engine
        self._flying: dict[int, tuple[Job, Place]] = {}  # by engine's sequence number
        self._version = -1  # weight version of the tokens being drawn

    def run(
        self,
        job: Job,
        version: int,
        stop: Callable[[], bool] = never,
        joining: Callable[[], Iterable[Job]] = nobody,
    ) -> Iterator[RolloutBatch]:
        """Sample until a job is done, or until `stop` returns True between two steps.

        Args:
            job: Active already, or started now.
            version: Of the engine's weights; recorded for every token that is drawn now.
            stop: Called before the first step and after every step; True drops all active jobs from
                the engine.
            joining: Called before every step; returns the jobs to sample along with this one, new
                or already active.

        Yields:
            Parts of this job: whole groups, rows in the order of the requests.

        Raises:
            RoleError: The engine has lost sequences that were added to it.
        """
        if stop():
            self.land()
            return
        self._version = version
        self._launch(job)
        while not job.enough:
            if job.part_ready:  # possible before the first step if the job joined earlier
                yield job.take()
            for other in joining():
                self._launch(other)
            self._step()
            if stop():
                self.land()
                return
        yield job.take()

    def nudge(self) -> bool:
        """Step the engine if any job is active; False if none is."""
        flies = bool(self._flying)
        if flies:
            self._step()
        return flies

    def land(self) -> None:
        """Drop all active sequences from the engine; their jobs keep the tokens drawn so far."""
        self._land(list(self._flying))

    def _launch(self, job: Job) -> None:
        if job.flying or job.enough:
            return
        job.flying = True
        places = job.unfinished
        numbers = self.engine.add([job.sample(place) for place in places], job.sampling)
        self._flying |= {n: (job, place) for n, place in zip(numbers, places, strict=True)}

    def _step(self) -> None:
        if not self.engine.running:
            raise RoleError(
                "the engine has lost sequences",
                where=f"numbers {sorted(self._flying)}",
                fix="this is a defect of the engine's bookkeeping: please report it",
            )
        finished = self.engine.step()
        beat()
        complete = False
        for number, drawn in finished:
            job, place = self._flying.pop(number)
            job.add(place, drawn, self._version)
            complete |= job.enough
        if complete:
            self._land([n for n, (job, _) in self._flying.items() if job.enough])

    def _land(self, numbers: list[int]) -> None:
        if not numbers:
            return
        for number, drawn in self.engine.drop(numbers):
            job, place = self._flying.pop(number)
            job.add(place, drawn, self._version)
            job.flying = False

"""All jobs that are under way in one engine.

Whoever waits for a job steps the engine, and every job that flies gets further with it. So a job
that joins while an earlier one is waited for fills the places that finished sequences leave, and
may be complete before anybody asks for it.
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
    """Until all is done."""
    return False


class Pool:
    """Steps an engine. Not for several threads."""

    def __init__(self, engine: GenerationEngine) -> None:
        self.engine = engine
        self._flying: dict[int, tuple[Job, Place]] = {}  # by the engine's number of a sequence
        self._version = -1  # under which those were drawn that fly

    def run(
        self,
        job: Job,
        version: int,
        stop: Callable[[], bool] = never,
        joining: Callable[[], Iterable[Job]] = nobody,
    ) -> Iterator[RolloutBatch]:
        """Sample until a job is done, or until `stop` says so between two steps.

        Args:
            job: Flies already, or starts now.
            version: Of the engine's weights; stamped on every token that is drawn now.
            stop: Asked before the first step and after every step; nothing flies afterwards.
            joining: Asked before every step for the jobs that fly along, now or already.

        Yields:
            Parts of this job, whole groups each, rows in the order of the requests.

        Raises:
            RoleError: The engine does not know of sequences that it was given.
        """
        if stop():
            self.land()
            return
        self._version = version
        self._launch(job)
        while not job.enough:
            if job.part_ready:  # at once, if it joined before its turn came
                yield job.take()
            for other in joining():
                self._launch(other)
            self._step()
            if stop():
                self.land()
                return
        yield job.take()

    def nudge(self) -> bool:
        """One step for what flies; False: nothing does."""
        flies = bool(self._flying)
        if flies:
            self._step()
        return flies

    def land(self) -> None:
        """Stop everything that flies; the jobs keep what was drawn."""
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

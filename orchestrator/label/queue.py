"""Which task a labeler gets next: leases, overlap, and tasks whose answer is known."""

from __future__ import annotations

import hashlib
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

LEASE_SECONDS = 1800.0


@dataclass(slots=True)
class Waiting:
    """A task and who works on it."""

    id: int
    needed: int
    priority: float = 0.0
    gold: bool = False
    judged: set[int] = field(default_factory=set)  # labelers
    leases: dict[int, float] = field(default_factory=dict)  # labeler -> clock at its end


class Queue:
    """The tasks of a project, in memory.

    A task is given to at most as many labelers at the same time as it still needs judgments. A
    labeler keeps a task until it is judged or passed, or until the lease ends; the page renews the
    lease. A judgment that arrives after the lease is kept all the same.

    Args:
        tasks: All tasks; of equal priority the lower id comes first.
        gold_every: One of this many tasks of a labeler is one with a known answer.
        lease_seconds: Length of a lease.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        tasks: Iterable[Waiting],
        gold_every: int = 20,
        lease_seconds: float = LEASE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tasks = {task.id: task for task in tasks}
        ordered = sorted(self._tasks.values(), key=lambda task: (-task.priority, task.id))
        # not a list: every judgment ends a task, and filtering 50,000 takes 10 ms; and no plain
        # dict, whose deleted first entries are passed again at every look for the next task
        self._open = OrderedDict(
            (task.id, task) for task in ordered if not task.gold and len(task.judged) < task.needed
        )
        self._gold = [task for task in ordered if task.gold]
        self._every, self._lease, self._clock = gold_every, lease_seconds, clock
        self._seen: dict[int, set[int]] = {}  # labeler -> tasks judged or passed
        self._given: dict[int, int] = {}  # labeler -> the task that is open
        for task in self._tasks.values():
            for labeler in task.judged:
                self._seen.setdefault(labeler, set()).add(task.id)

    def next(self, labeler: int) -> int | None:
        """The task for a labeler, leased; None = nothing is left, or others work on all of it."""
        given = self._given.get(labeler)
        if given is not None and self._may_take(self._tasks[given], labeler):
            return self._take(self._tasks[given], labeler)
        waiting = next((t for t in self._open.values() if self._may_take(t, labeler)), None)
        if waiting is None:
            return None
        seen = self._seen.get(labeler, set())
        known = next((t for t in self._gold if t.id not in seen), None)
        if known is not None and self._gold_due(labeler, len(seen)):
            return self._take(known, labeler)
        return self._take(waiting, labeler)

    def renew(self, labeler: int, task: int) -> bool:
        """Extend the lease; False if the labeler no longer has the task."""
        held = self._given.get(labeler) == task and self._may_take(self._tasks[task], labeler)
        if held:
            self._take(self._tasks[task], labeler)
        return held

    def judged(self, labeler: int, task: int) -> None:
        """Record that a labeler judged a task."""
        found = self._tasks[task]
        found.judged.add(labeler)
        if len(found.judged) >= found.needed:
            self._open.pop(task, None)
        self.passed(labeler, task)

    def passed(self, labeler: int, task: int) -> None:
        """Record that a labeler is done with a task: it is not shown to this labeler again."""
        self._seen.setdefault(labeler, set()).add(task)
        self._tasks[task].leases.pop(labeler, None)
        if self._given.get(labeler) == task:
            del self._given[labeler]

    def resume(self, labeler: int, task: int) -> None:
        """Give a task again to the labeler who had it before a restart of the server."""
        if self._may_take(self._tasks[task], labeler):
            self._take(self._tasks[task], labeler)

    def holds(self, labeler: int, task: int) -> bool:
        """Whether the labeler was given this task and it is still open for this labeler."""
        return self._given.get(labeler) == task

    def left(self, labeler: int) -> int:
        """Tasks that still need a judgment which this labeler could give."""
        seen = self._seen.get(labeler, set())
        return len(self._open) - sum(task in self._open for task in seen)

    def _gold_due(self, labeler: int, done: int) -> bool:
        # an own place for every labeler, or they would tell each other which task is known
        drawn = random.Random(f"gold {labeler} {done // self._every}")
        return done % self._every == drawn.randrange(self._every)

    def _may_take(self, task: Waiting, labeler: int) -> bool:
        if task.id in self._seen.get(labeler, set()):
            return False
        if task.gold:
            return True
        now = self._clock()
        others = sum(until > now for who, until in task.leases.items() if who != labeler)
        return len(task.judged) + others < task.needed

    def _take(self, task: Waiting, labeler: int) -> int:
        task.leases[labeler] = self._clock() + self._lease
        self._given[labeler] = task.id
        return task.id


def shown_order(task: int, labeler: int, answers: int, seed: int) -> tuple[int, ...]:
    """The order in which a labeler sees the answers of a task: a permutation of 0..answers-1."""
    digest = hashlib.sha256(f"{seed} {task} {labeler}".encode()).digest()
    order = list(range(answers))
    random.Random(digest).shuffle(order)
    return tuple(order)

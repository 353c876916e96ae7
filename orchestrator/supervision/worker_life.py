"""Lifecycle of one worker as a state machine, without Ray and with an injected clock.

    healthy <-> suspect -> dead -> restarting -> stale -> healthy
       any -> dead (its process ended), any -> retired (given up, or no longer needed)

`healthy` and `suspect` workers serve; a restarted worker is `stale` until it holds what its peers
hold (weights synced and compared, model and state loaded).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

Clock = Callable[[], float]


class Status(Enum):
    """State of a worker."""

    healthy = "healthy"
    suspect = "suspect"  # missed a probe; serves until it has missed `probes_to_condemn`
    dead = "dead"  # its process ended, or failed its probes and will be ended
    restarting = "restarting"
    stale = "stale"  # restarted, without current weights or state
    retired = "retired"


_FIRST_REST, _LONGEST_REST = 2.0, 60.0  # seconds
_SERVING = (Status.healthy, Status.suspect)
_PROBED = (*_SERVING, Status.stale)


@dataclass(frozen=True, slots=True)
class Rules:
    """When a worker counts as dead, and how often it is restarted."""

    probe_seconds: float  # from an answered probe to the next
    probes_to_condemn: int  # consecutive failed probes after which a worker counts as dead
    max_restarts: int  # within the window
    window_seconds: float

    def rest_seconds(self, restarts: int) -> float:
        """Restart delay after a loss, given the number of restarts within the window.

        It is 0 for the first restart and doubles from the second one on, up to a limit.
        """
        return min(_FIRST_REST * 2.0 ** (restarts - 1), _LONGEST_REST) if restarts else 0.0

    @property
    def answer_seconds(self) -> float:
        """Timeout of a probe.

        A late probe is repeated at once, so that a worker that stops right after an answer counts
        as dead `probes_to_condemn` intervals later: one interval until the next probe, then n
        timeouts of (n - 1) / n of an interval each.
        """
        n = self.probes_to_condemn
        return self.probe_seconds * (n - 1) / n if n > 1 else self.probe_seconds


class WorkerLife:
    """One worker through all its processes; each process is an incarnation.

    Events that name another incarnation than the present one come from a process that has ended;
    they change nothing. `strays` counts such probe answers and failures.
    """

    def __init__(self, name: str, rules: Rules, clock: Clock) -> None:
        self.name = name
        self.status = Status.healthy
        self.incarnation = 0
        self.reason = ""  # why it died or was retired
        self.probe_failures = 0  # consecutive
        self.request_failures = 0  # calls that raised; no sign that the process is unhealthy
        self.strays = 0
        self._rules = rules
        self._clock = clock
        self._restarts: deque[float] = deque()  # times of restarts within the window
        self._ended = clock()  # when the last process was lost

    @property
    def serves(self) -> bool:
        """Whether the worker may get requests."""
        return self.status in _SERVING

    @property
    def probed(self) -> bool:
        """Whether the worker is probed."""
        return self.status in _PROBED

    @property
    def restarts(self) -> int:
        """Restarts within the window that ends now."""
        since = self._clock() - self._rules.window_seconds
        while self._restarts and self._restarts[0] <= since:
            self._restarts.popleft()
        return len(self._restarts)

    @property
    def rests(self) -> bool:
        """Whether the restart delay after its last loss is still running."""
        before = self.restarts - (self.status is Status.restarting)
        rest = self._rules.rest_seconds(before)
        return before < self._rules.max_restarts and self._clock() < self._ended + rest

    def probe_ok(self, incarnation: int) -> None:
        """Record an answered probe."""
        if self._present(incarnation):
            self.probe_failures = 0
            if self.status is Status.suspect:
                self.status = Status.healthy

    def probe_failed(self, incarnation: int, why: str) -> None:
        """Record a probe without a timely answer."""
        if not self._present(incarnation):
            return
        self.probe_failures += 1
        if self.probe_failures >= self._rules.probes_to_condemn:
            self._die(f"{why}, {self.probe_failures} times in a row")
        elif self.status is Status.healthy:
            self.status = Status.suspect

    def request_failed(self, incarnation: int) -> None:
        """Record that a call to the worker raised."""
        if self._present(incarnation):
            self.request_failures += 1

    def died(self, incarnation: int, why: str) -> None:
        """Record that its process ended, or hangs and will be ended."""
        if incarnation == self.incarnation and self.status not in (Status.dead, Status.retired):
            self._die(why)

    def restart(self) -> bool:
        """Begin the next incarnation; if the window's restarts are used up, retire: False."""
        assert self.status is Status.dead, f"{self.name} is {self.status.value}, not dead"
        if self.restarts >= self._rules.max_restarts:
            self.retire(f"{self.reason}; restarted {self.restarts} times before")
            return False
        self._restarts.append(self._clock())
        self.incarnation += 1
        self.status = Status.restarting
        self.probe_failures = 0
        return True

    def restarted(self, incarnation: int) -> None:
        """Record that the new process has started."""
        if incarnation == self.incarnation and self.status is Status.restarting:
            self.status = Status.stale

    def current(self, incarnation: int) -> None:
        """Record that it was verified to hold what its peers hold."""
        if incarnation == self.incarnation and self.status is Status.stale:
            self.status = Status.healthy

    def retire(self, why: str = "") -> None:
        """Stop using the worker: it is not needed any more, or cannot be restarted."""
        if self.status is not Status.retired:
            self.status, self.reason = Status.retired, why

    def _present(self, incarnation: int) -> bool:
        if incarnation == self.incarnation and self.probed:
            return True
        self.strays += 1
        return False

    def _die(self, why: str) -> None:
        self.status, self.reason = Status.dead, why
        self._ended = self._clock()

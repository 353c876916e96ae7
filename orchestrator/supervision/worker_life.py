"""What the driver knows about the life of one worker, as a state machine without clocks or Ray.

    healthy <-> suspect -> dead -> restarting -> stale -> healthy
       any -> dead (its process ended), any -> retired (given up, or no longer needed)

`healthy` and `suspect` workers serve; a worker that came back is `stale` until it holds what its
peers hold (weights synced and compared, model and state loaded).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

Clock = Callable[[], float]


class Status(Enum):
    """Where in its life a worker is."""

    healthy = "healthy"
    suspect = "suspect"  # missed a probe, and serves until it has missed as many as condemn
    dead = "dead"  # its process ended, or was condemned and is to be ended
    restarting = "restarting"
    stale = "stale"  # stands again, and holds nothing current
    retired = "retired"


_FIRST_REST, _LONGEST_REST = 2.0, 60.0  # seconds
_SERVING = (Status.healthy, Status.suspect)
_PROBED = (*_SERVING, Status.stale)


@dataclass(frozen=True, slots=True)
class Rules:
    """When a worker is given up, and how often it comes back."""

    probe_seconds: float  # between two probes that are answered
    probes_to_condemn: int
    max_restarts: int  # within the window
    window_seconds: float

    def rest_seconds(self, restarts: int) -> float:
        """How long to wait after a loss, when there were so many restarts within the window.

        None before the first; what ends again and again is started less and less often.
        """
        return min(_FIRST_REST * 2.0 ** (restarts - 1), _LONGEST_REST) if restarts else 0.0

    @property
    def answer_seconds(self) -> float:
        """How long a probe may take to be answered.

        A late one is repeated at once, so that a worker that stops right after an answer is
        condemned `probes_to_condemn` intervals later: one until it is asked, then n answers of
        (n - 1) / n of an interval each.
        """
        n = self.probes_to_condemn
        return self.probe_seconds * (n - 1) / n if n > 1 else self.probe_seconds


class Life:
    """One worker through all its processes; each process is an incarnation.

    Events that name an incarnation other than the present one tell of a process that is gone: they
    are counted in `strays` and change nothing.
    """

    def __init__(self, name: str, rules: Rules, clock: Clock) -> None:
        self.name = name
        self.status = Status.healthy
        self.incarnation = 0
        self.reason = ""  # why it was condemned, retired or died
        self.probe_failures = 0  # in a row
        self.request_failures = 0  # calls that raised; says nothing about the process
        self.strays = 0
        self._rules = rules
        self._clock = clock
        self._restarts: deque[float] = deque()  # when, within the window
        self._ended = clock()  # when the last process was lost

    @property
    def serves(self) -> bool:
        """Whether requests may go to it."""
        return self.status in _SERVING

    @property
    def probed(self) -> bool:
        """Whether it is asked for signs of life."""
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
        """Whether it was lost so often, and so lately, that it is not to be started yet."""
        before = self.restarts - (self.status is Status.restarting)
        rest = self._rules.rest_seconds(before)
        return before < self._rules.max_restarts and self._clock() < self._ended + rest

    def probe_ok(self, incarnation: int) -> None:
        """It answered a probe."""
        if self._present(incarnation):
            self.probe_failures = 0
            if self.status is Status.suspect:
                self.status = Status.healthy

    def probe_failed(self, incarnation: int, why: str) -> None:
        """It answered a probe wrongly, or not in time."""
        if not self._present(incarnation):
            return
        self.probe_failures += 1
        if self.probe_failures >= self._rules.probes_to_condemn:
            self._die(f"{why}, {self.probe_failures} times in a row")
        elif self.status is Status.healthy:
            self.status = Status.suspect

    def request_failed(self, incarnation: int) -> None:
        """A call to it raised."""
        if self._present(incarnation):
            self.request_failures += 1

    def died(self, incarnation: int, why: str) -> None:
        """Its process ended, or hangs and is as good as ended."""
        if incarnation == self.incarnation and self.status not in (Status.dead, Status.retired):
            self._die(why)

    def restart(self) -> bool:
        """Begin another incarnation; False, and retired, when the window's restarts are used up."""
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
        """The new process stands."""
        if incarnation == self.incarnation and self.status is Status.restarting:
            self.status = Status.stale

    def current(self, incarnation: int) -> None:
        """It holds what its peers hold, and that was checked."""
        if incarnation == self.incarnation and self.status is Status.stale:
            self.status = Status.healthy

    def retire(self, why: str = "") -> None:
        """It is not needed, or not to be had, any more."""
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

"""Time accounting: how long each role worked and waited in each step.

Replies to calls contain spans (`workers.process.call_timing`). This module converts them to the
driver's clock and sums them over windows of time. It makes no calls to roles.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from workers.process.call_timing import CallSpan, Reply, clock_name

_KEPT_PINGS = 64  # clocks drift by tens of microseconds per second, so old pings are dropped

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Ping:
    """Times of a call on the clocks of both sides, in seconds."""

    sent: float  # driver
    begin: float  # role
    end: float  # role
    received: float  # driver

    @property
    def delay(self) -> float:
        """Time in transit and in queues."""
        return (self.received - self.sent) - (self.end - self.begin)

    @property
    def offset(self) -> float:
        """Role's clock minus the driver's, wrong by half the delay at most (RFC 5905, section 8).

        theta = ((begin - sent) + (end - received)) / 2
        """
        return ((self.begin - self.sent) + (self.end - self.received)) / 2


def clock_offset(pings: Iterable[Ping]) -> float:
    """Offset of the ping with the least delay, in seconds; NTP's clock filter."""
    return min(pings, key=lambda ping: ping.delay).offset


@dataclass(frozen=True, slots=True)
class RoleSpan:
    """One call to one worker, in seconds of the driver's clock."""

    role: str
    rank: int
    verb: str
    begin: float
    end: float
    transfer: float


@dataclass(frozen=True, slots=True)
class RoleTime:
    """A role's time in one window by kind, in seconds, mean over its workers."""

    busy: float  # in calls, transfers left out
    transfer: float  # fetching records of other roles, moving weights
    waiting: float  # in no call

    @property
    def idle_share(self) -> float:
        """Waiting as a fraction of the window."""
        whole = self.busy + self.transfer + self.waiting
        return self.waiting / whole if whole > 0 else 0.0


def covered(intervals: Sequence[Interval], window: Interval) -> float:
    """Seconds of `window` covered by at least one interval."""
    total, reached = 0.0, window[0]
    for begin, end in sorted(intervals):
        begin, end = max(begin, reached), min(end, window[1])
        if end > begin:
            total += end - begin
            reached = end
    return total


def spent(spans: Sequence[RoleSpan], window: Interval, absent: Sequence[Interval] = ()) -> RoleTime:
    """One worker's time in a window; calls that overlap count once.

    A call partly outside the window counts the same share of its transfer time. Time without a
    worker process is neither work nor waiting.
    """
    whole = window[1] - window[0] - covered(absent, window)
    inside = min(covered([(s.begin, s.end) for s in spans], window), whole)
    transfer = 0.0
    for span in spans:
        length = span.end - span.begin
        if length > 0:
            transfer += span.transfer * covered([(span.begin, span.end)], window) / length
    transfer = min(transfer, inside)
    return RoleTime(inside - transfer, transfer, whole - inside)


Peek = Callable[[], "Reply | None"]


@dataclass(frozen=True, slots=True)
class _Open:
    sent: float
    peek: Peek


@dataclass(slots=True)
class _Worker:
    spans: list[RoleSpan]
    pings: deque[Ping]
    open: dict[int, _Open]
    absences: list[Interval]  # times without a process; the last one may be unfinished
    peak: int = 0  # most resident bytes in a reply since `peaks` was called

    def busy_since(self) -> float | None:
        """Latest known start of work on the first open call: its sending or the last span's end."""
        if not self.open:
            return None
        return max([min(call.sent for call in self.open.values()), *(s.end for s in self.spans)])


class Account:
    """Collects the calls of all workers over consecutive windows of time."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._clock = clock_name()
        self._lock = threading.RLock()
        self._calls = 0
        self._workers: dict[tuple[str, int], _Worker] = defaultdict(
            lambda: _Worker([], deque(maxlen=_KEPT_PINGS), {}, [])
        )
        self._begin: float | None = None
        #: Called at the end of a window, to fetch the spans of calls that are still running.
        self.ask: list[Callable[[], None]] = []
        self._untold: list[RoleSpan] = []

    def sent(self, role: str, rank: int, at: float, peek: Peek) -> int:
        """Record a call; returns its number.

        Args:
            role: Role of the worker.
            rank: Rank of the worker.
            at: Time of sending, by `now`.
            peek: Returns the reply if it has arrived, else None, without waiting.
        """
        with self._lock:
            self._calls += 1
            self._workers[role, rank].open[self._calls] = _Open(at, peek)
            return self._calls

    def answered(self, role: str, rank: int, call: int, spans: Sequence[CallSpan]) -> None:
        """Record the reply to a call, whose own span is the last; repeated calls do nothing."""
        with self._lock:
            worker = self._workers[role, rank]
            if (found := worker.open.pop(call, None)) is not None:
                own = spans[-1]
                worker.pings.append(Ping(found.sent, own.begin, own.end, self.now()))
                self.told(role, rank, spans)

    def told(self, role: str, rank: int, spans: Sequence[CallSpan]) -> None:
        """Record spans of a partial reply."""
        with self._lock:
            worker = self._workers[role, rank]
            for span in spans:
                worker.peak = max(worker.peak, span.peak)
                same = span.clock == self._clock or not worker.pings
                shift = 0.0 if same else clock_offset(worker.pings)
                own = RoleSpan(
                    role, rank, span.verb, span.begin - shift, span.end - shift, span.transfer
                )
                worker.spans = [*worker.spans, own] if self._begin is not None else [own]
                self._untold.append(own)

    def left(self, role: str, rank: int) -> None:
        """Record that the process of a worker was lost or ended, and its open calls with it."""
        with self._lock:
            self._settle()
            worker, now = self._workers[role, rank], self.now()
            since = worker.busy_since()
            if since is not None and since < now:
                worker.spans = [*worker.spans, RoleSpan(role, rank, "", since, now, 0.0)]
            worker.open.clear()
            worker.pings.clear()
            if not _is_absent(worker):
                worker.absences.append((now, math.inf))

    def came(self, role: str, rank: int) -> None:
        """Record that a worker has a new process."""
        with self._lock:
            worker = self._workers[role, rank]
            if _is_absent(worker):
                worker.absences[-1] = (worker.absences[-1][0], self.now())

    def open(self) -> None:
        """Begin a window, unless one is open."""
        with self._lock:
            if self._begin is None:
                self._begin = self.now()

    def at_work(self, role: str, verb: str) -> float | None:
        """Seconds of the open window that the slowest worker of a role spent on a verb.

        None if no window is open, or no worker has replied to such a call in it.
        """
        with self._lock:
            self._settle()
            if self._begin is None:
                return None
            window = (self._begin, self.now())
            found = [
                covered([(s.begin, s.end) for s in worker.spans if s.verb == verb], window)
                for (name, _), worker in self._workers.items()
                if name == role and any(s.verb == verb for s in worker.spans)
            ]
        return max(found, default=None)

    def close(self) -> dict[str, RoleTime]:
        """End the window and begin the next; returns every role's time in it.

        A call without a reply counts as busy since it was sent, or since the end of the previous
        call. A worker without a process during the whole window is left out.
        """
        if self._begin is not None:
            for bring in self.ask:
                bring()
        with self._lock:
            self._settle()
            if self._begin is None:
                return {}
            window = (self._begin, self.now())
            self._begin = window[1]
            times: dict[str, list[RoleTime]] = defaultdict(list)
            for (role, rank), worker in sorted(self._workers.items()):
                spans = list(worker.spans)
                if (since := worker.busy_since()) is not None and since < window[1]:
                    spans.append(RoleSpan(role, rank, "", since, window[1], 0.0))
                if covered(worker.absences, window) < window[1] - window[0]:
                    times[role].append(spent(spans, window, worker.absences))
                worker.absences = worker.absences[-1:] if _is_absent(worker) else []
                worker.spans = worker.spans[-1:]  # needed for the start of an open call
        return {role: _mean(each) for role, each in times.items()}

    def end(self) -> None:
        """End the window without a result; the next step opens another."""
        with self._lock:
            self._begin = None

    def peaks(self) -> dict[str, int]:
        """Most resident bytes of each role that replied since the previous call of this method.

        Sum over its workers, of which each may have reached its own at another time.
        """
        with self._lock:
            self._settle()
            found: dict[str, int] = defaultdict(int)
            for (role, _), worker in sorted(self._workers.items()):
                found[role] += worker.peak
                worker.peak = 0
        return {role: peak for role, peak in found.items() if peak}

    def untold(self) -> list[RoleSpan]:
        """The spans since the previous call of this method, for the trace."""
        with self._lock:
            spans, self._untold = self._untold, []
        return spans

    def _settle(self) -> None:
        """Record the replies that have arrived but have not been fetched yet."""
        for (role, rank), worker in self._workers.items():
            for call, found in list(worker.open.items()):
                if (reply := found.peek()) is not None:
                    self.answered(role, rank, call, reply.spans)


def _is_absent(worker: _Worker) -> bool:
    return bool(worker.absences) and worker.absences[-1][1] == math.inf


def _mean(times: Sequence[RoleTime]) -> RoleTime:
    n = len(times)
    return RoleTime(
        sum(t.busy for t in times) / n,
        sum(t.transfer for t in times) / n,
        sum(t.waiting for t in times) / n,
    )

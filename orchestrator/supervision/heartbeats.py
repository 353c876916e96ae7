"""Signs of life of all workers, looked for while the driver waits for anything.

Each process answers from a thread of its own with a `Pulse`. Who does not answer is stopped or
gone; who answers, but whose work has not got any further for long, hangs. A long generation or a
long training step does neither: it answers, and its passes are counted.

There is no thread here: `Pending.result`, where the driver spends its time, calls `tick`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.supervision.server_guard import Guard
from orchestrator.supervision.worker_life import Clock, Life, Rules, Status
from workers.errors import RehearsalError, RoleDiedError, RoleHungError
from workers.process.heartbeat import Pulse

_STACK_SECONDS = 3.0


def kernel_kills(counters: Path = Path("/proc/vmstat")) -> int:
    """How many processes of this machine the kernel has killed for want of memory; 0: unknown."""
    try:
        lines = counters.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


class Line(Protocol):
    """The way to one process that does not queue behind its work."""

    def ask(self) -> None:
        """Ask for its pulse; an answer to an earlier question is not waited for any more."""
        ...

    def answer(self) -> Pulse | None:
        """The answer, or None: not yet.

        Raises:
            RehearsalError: there will be none.
        """
        ...

    def stacks(self, seconds: float) -> str:
        """Where its threads are; "" when it does not say within the time."""
        ...


@dataclass(slots=True)
class _Watched:
    life: Life
    line: Line
    stood: bool = False  # has answered a first call: before, the process is still starting
    starts: int = 0  # open calls that import or load, and may hold every thread up
    due: float = 0.0
    asked: float | None = None
    pulse: Pulse | None = None


class Watch:
    """Follows the lives of the workers of one run."""

    def __init__(
        self,
        rules: Rules,
        stall_seconds: float,
        clock: Clock = time.monotonic,
        logs: Path | None = None,
        guard: Guard | None = None,
    ) -> None:
        """Watch nobody yet.

        Args:
            rules: When a worker is condemned, and how often it comes back.
            stall_seconds: How long a verb may go without a beat.
            clock: Seconds that only grow.
            logs: Folder for the stacks of processes that hang; None: they are not kept.
            guard: Looks after Ray's own servers meanwhile.
        """
        self._guard = guard
        self.rules = rules
        self.poll_seconds = min(max(rules.probe_seconds / 20, 0.02), 0.5)
        self._stall_seconds = stall_seconds
        self._clock = clock
        self._logs = logs
        self._watched: dict[str, _Watched] = {}
        self._kills = kernel_kills()
        #: Called at every look with the names that are waited for; may not wait itself.
        self.meanwhile: list[Callable[[Collection[str]], None]] = []

    def add(self, name: str, line: Line) -> Life:
        """Watch a new process; a name that was watched before goes on with its life."""
        known = self._watched.get(name)
        life = known.life if known else Life(name, self.rules, self._clock)
        self._watched[name] = _Watched(life, line)
        return life

    def life(self, name: str) -> Life:
        """The life of a worker."""
        return self._watched[name].life

    def comes_back(self, name: str) -> bool:
        """Whether a worker that was never lost, or not too often, goes by this name."""
        return name not in self._watched or self.life(name).status is not Status.retired

    def rest(self, name: str) -> None:
        """Wait before a worker that is lost again and again gets another process.

        A machine that is short of something would use up all its restarts within a second.
        """
        each = self._watched.get(name)
        while each is not None and each.life.rests:
            self.tick([name])
            time.sleep(self.poll_seconds)

    def starting(self, names: Iterable[str]) -> None:
        """These have been asked to import or load something; they are left alone meanwhile."""
        for name in names:
            self._watched[name].starts += 1

    def started(self, names: Iterable[str], *, well: bool) -> None:
        """That is over; if it went well the processes stand."""
        for name in names:
            each = self._watched[name]
            each.starts = max(0, each.starts - 1)
            each.stood |= well
            each.asked = None
            if well:
                each.life.restarted(each.life.incarnation)
                each.life.current(each.life.incarnation)

    def died(self, name: str, why: str) -> str:
        """The process of a worker is known to have ended; why, with what the kernel knows of it.

        Raises:
            ClusterLostError: because one of Ray's servers did.
        """
        if self._guard is not None:
            self._guard.look()
        before, self._kills = self._kills, kernel_kills()
        if self._kills > before:
            why += "; the kernel has ended a process of this machine for want of memory"
        if name in self._watched:
            life = self._watched[name].life
            life.died(life.incarnation, why)
        return why

    def failed(self, name: str) -> None:
        """A call to a worker raised: look after it at once."""
        each = self._watched.get(name)
        if each is not None:
            each.life.request_failed(each.life.incarnation)
            each.due = self._clock()

    def tick(self, waited: Collection[str] = ()) -> None:
        """Ask whose turn it is, and take what has been answered.

        Args:
            waited: Who is waited for; whoever waits looks after them itself.

        Raises:
            ClusterLostError: Ray's servers are lost, and all workers with them.
        """
        if self._guard is not None:
            self._guard.check()
        for each in list(self._watched.values()):
            self._look(each)
        for call in self.meanwhile:
            call(waited)

    def _look(self, each: _Watched) -> None:
        life, now = each.life, self._clock()
        if not (life.probed and each.stood and each.starts == 0):
            each.asked = None
            return
        if each.asked is None:
            if now >= each.due:
                self._ask(each, now)
            return
        try:
            pulse = each.line.answer()
        except RehearsalError as error:
            self.died(life.name, error.what)
            return
        if pulse is not None:
            self._take(each, pulse, now)
        elif now - each.asked >= self.rules.answer_seconds:
            life.probe_failed(life.incarnation, "it gave no sign of life")
            if life.probed:
                self._ask(each, now)

    def _ask(self, each: _Watched, now: float) -> None:
        each.line.ask()
        each.asked = now

    def _take(self, each: _Watched, pulse: Pulse, now: float) -> None:
        life = each.life
        life.probe_ok(life.incarnation)
        each.pulse, each.asked, each.due = pulse, None, now + self.rules.probe_seconds
        if pulse.verb and pulse.quiet_seconds > self._stall_seconds:
            life.died(life.incarnation, f"it hangs: {pulse}")

    def check(self, names: Iterable[str], doing: str) -> None:
        """Raise RoleHungError if one of these was condemned while something waits for it."""
        chosen = [name for name in names if name in self._watched]
        for name in chosen:
            life = self._watched[name].life
            if life.status is Status.dead:
                raise self.hung(name, doing, chosen)

    def hung(self, name: str, doing: str, peers: Iterable[str]) -> RoleHungError:
        """What is known of a worker that was condemned, with the stacks of it and its peers."""
        each = self._watched[name]
        kept = [path for peer in peers if (path := self._keep_stacks(peer))]
        last = f"; last seen: {each.pulse}" if each.pulse else ""
        return RoleHungError(
            f"{name} is given up: {each.life.reason}{last}; {doing}",
            where=name,
            fix="if it was at work raise run.supervision.stall_seconds or probe_seconds"
            + (f"; where its threads were: {', '.join(kept)}" if kept else ""),
        )

    def _keep_stacks(self, name: str) -> str:
        each = self._watched[name]
        if self._logs is None or each.life.probe_failures:
            return ""  # the thread that would tell gives no sign of life
        text = each.line.stacks(_STACK_SECONDS)
        if not text:
            return ""
        self._logs.mkdir(parents=True, exist_ok=True)
        path = self._logs / f"stacks-{name.replace(' ', '-')}.txt"
        path.write_text(text, encoding="utf-8")
        return str(path)

    def lost(self, names: Iterable[str]) -> list[str]:
        """Those whose processes are dead or do not answer now; waits until each has answered."""
        chosen = [self._watched[name] for name in names]
        for each in chosen:
            each.due, each.asked, each.starts = self._clock(), None, 0
        seen = {id(each): each.pulse for each in chosen}
        patience = self.rules.answer_seconds * (self.rules.probes_to_condemn + 1)
        until = self._clock() + patience
        while self._clock() < until and any(
            each.life.probed and each.stood and each.pulse is seen[id(each)] for each in chosen
        ):
            self.tick([each.life.name for each in chosen])
            time.sleep(self.poll_seconds)
        return [each.life.name for each in chosen if not each.life.probed or not each.stood]

    def require_restart(self, name: str, why: str) -> None:
        """Begin another incarnation of a worker.

        Raises:
            RoleDiedError: it has used up its restarts.
            ClusterLostError: one of Ray's servers ended, and the worker with it.
        """
        if self._guard is not None:
            self._guard.look()
        life = self._watched[name].life
        life.died(life.incarnation, why)
        if life.status is Status.retired or not life.restart():
            raise RoleDiedError(
                f"{name} is not restarted again: {life.reason}",
                where=name,
                fix="its log says why it ends; where memory ran out take fewer workers, smaller "
                "micro_batch_tokens or rollout.kv_cache_mib, or a machine with more. "
                f"run.supervision.max_restarts={self.rules.max_restarts} within "
                f"{self.rules.window_seconds:.0f} s",
            )

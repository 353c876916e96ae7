"""Heartbeats of all workers, probed during every wait of the driver.

Each process answers probes with a `Pulse` from a separate thread. A worker that does not answer is
stopped or dead. One that answers but makes no progress for stall_seconds is hung. During a long
generation or training step a worker answers, and its passes count as progress.

No thread runs here: `Pending.result`, where the driver spends its time, calls `tick`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.supervision.server_guard import Guard
from orchestrator.supervision.worker_life import Clock, Rules, Status, WorkerLife
from workers.errors import RehearsalError, RoleDiedError, RoleHungError
from workers.process.heartbeat import Pulse

_STACK_SECONDS = 3.0


def kernel_kills(counters: Path = Path("/proc/vmstat")) -> int:
    """How many processes the kernel's OOM killer has ended on this machine; 0 if unknown."""
    try:
        lines = counters.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


class Line(Protocol):
    """Probe channel to one process; it does not queue behind the process's work."""

    def ask(self) -> None:
        """Send a probe; the answer to an earlier one is ignored from now on."""
        ...

    def answer(self) -> Pulse | None:
        """The answer, or None if it has not arrived.

        Raises:
            RehearsalError: it will not arrive.
        """
        ...

    def stacks(self, seconds: float) -> str:
        """Stacks of its threads; "" if it does not answer within the time."""
        ...


@dataclass(slots=True)
class _Watched:
    life: WorkerLife
    line: Line
    stood: bool = False  # has completed an import or a load; until then it is starting
    starts: int = 0  # open calls that import or load, and may block every thread
    due: float = 0.0  # time of the next probe
    asked: float | None = None  # time of the open probe
    pulse: Pulse | None = None


class Watch:
    """Probes the workers of one run and tracks their lifecycles."""

    def __init__(
        self,
        rules: Rules,
        stall_seconds: float,
        clock: Clock = time.monotonic,
        logs: Path | None = None,
        guard: Guard | None = None,
    ) -> None:
        """Prepare without any worker.

        Args:
            rules: When a worker counts as dead, and how often it is restarted.
            stall_seconds: How long a verb may make no progress.
            clock: Monotonic seconds.
            logs: Folder for the stacks of hung processes, and where a local cluster leaves the
                output of workers; None: stacks are not written.
            guard: Watches Ray's own servers.
        """
        self._guard = guard
        self.rules = rules
        self.poll_seconds = min(max(rules.probe_seconds / 20, 0.02), 0.5)
        self._stall_seconds = stall_seconds
        self._clock = clock
        self.logs = logs
        self._watched: dict[str, _Watched] = {}
        self._kills = kernel_kills()
        #: Called at every `tick` with the names that are waited for; must not block.
        self.meanwhile: list[Callable[[Collection[str]], None]] = []

    @property
    def keeps_output(self) -> str:
        """Where the output of workers is after the run, for messages; "" if that is unknown."""
        return f" (a local run that ends in an error keeps it in {self.logs})" if self.logs else ""

    def add(self, name: str, line: Line) -> WorkerLife:
        """Watch a new process; a name that was watched before keeps its `WorkerLife`."""
        known = self._watched.get(name)
        life = known.life if known else WorkerLife(name, self.rules, self._clock)
        self._watched[name] = _Watched(life, line)
        return life

    def forget(self, names: Iterable[str]) -> None:
        """Stop watching processes that are ended on purpose."""
        for name in names:
            self._watched.pop(name, None)

    def knows(self, name: str) -> bool:
        """Whether a process of this name has been started."""
        return name in self._watched

    def life(self, name: str) -> WorkerLife:
        """The lifecycle of a worker."""
        return self._watched[name].life

    def comes_back(self, name: str) -> bool:
        """Whether a worker of this name may be started, because it is not retired."""
        return name not in self._watched or self.life(name).status is not Status.retired

    def rest(self, name: str) -> None:
        """Wait until the restart delay of a worker is over.

        Without the delay, a machine short of some resource would use up all restarts in a second.
        """
        each = self._watched.get(name)
        while each is not None and each.life.rests:
            self.tick([name])
            time.sleep(self.poll_seconds)

    def starting(self, names: Iterable[str]) -> None:
        """Stop probing workers while they import or load something."""
        for name in names:
            self._watched[name].starts += 1

    def started(self, names: Iterable[str], *, well: bool) -> None:
        """Probe them again after an import or a load; `well`: it succeeded, so they are healthy."""
        for name in names:
            each = self._watched[name]
            each.starts = max(0, each.starts - 1)
            each.stood |= well
            each.asked = None
            if well:
                each.life.restarted(each.life.incarnation)
                each.life.current(each.life.incarnation)

    def died(self, name: str, why: str) -> str:
        """Record that a worker's process ended; returns why, with any kill by the OOM killer.

        Raises:
            ClusterLostError: one of Ray's servers ended, and the worker with it.
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
        """Record that a call to a worker raised, and probe it at the next tick."""
        each = self._watched.get(name)
        if each is not None:
            each.life.request_failed(each.life.incarnation)
            each.due = self._clock()

    def tick(self, waited: Collection[str] = ()) -> None:
        """Send due probes, and take the answers that have arrived.

        Args:
            waited: Workers that the caller waits for, and whose losses it handles itself.

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
        """Raise RoleHungError if one of these workers, which the caller waits for, is dead."""
        chosen = [name for name in names if name in self._watched]
        for name in chosen:
            life = self._watched[name].life
            if life.status is Status.dead:
                raise self.hung(name, doing, chosen)

    def hung(self, name: str, doing: str, peers: Iterable[str]) -> RoleHungError:
        """Build the error for a worker declared dead; writes the stacks of it and its peers."""
        each = self._watched[name]
        kept = [path for peer in peers if (path := self._keep_stacks(peer))]
        last = f"; last seen: {each.pulse}" if each.pulse else ""
        return RoleHungError(
            f"{name} is lost: {each.life.reason}{last}; {doing}",
            where=name,
            fix="if it was at work raise run.supervision.stall_seconds or probe_seconds"
            + (f"; where its threads were: {', '.join(kept)}" if kept else ""),
        )

    def _keep_stacks(self, name: str) -> str:
        each = self._watched[name]
        if self.logs is None or each.life.probe_failures:
            return ""  # the thread that would answer does not answer probes
        text = each.line.stacks(_STACK_SECONDS)
        if not text:
            return ""
        self.logs.mkdir(parents=True, exist_ok=True)
        path = self.logs / f"stacks-{name.replace(' ', '-')}.txt"
        path.write_text(text, encoding="utf-8")
        return str(path)

    def lost(self, names: Iterable[str]) -> list[str]:
        """The workers whose processes are dead or do not answer a new probe; waits for answers."""
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
        """Begin the next incarnation of a worker.

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
                fix=f"its output says why{self.keeps_output}; where memory ran out take fewer "
                "workers, smaller micro_batch_tokens or rollout.kv_cache_mib, or a machine with "
                "more. "
                f"run.supervision.max_restarts={self.rules.max_restarts} within "
                f"{self.rules.window_seconds:.0f} s",
            )

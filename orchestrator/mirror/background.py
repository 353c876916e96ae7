"""The thread that copies finished checkpoints to the mirror while the run goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.mirror.claim import Claim, TakenOverError, complete_names, require_writer, take
from orchestrator.mirror.copying import Copier, plan_copy
from orchestrator.mirror.pruning import Keep, prune
from orchestrator.mirror.store import Store
from orchestrator.process.command_exit import say
from orchestrator.results.summary import MirrorTotals
from orchestrator.run_files.folder import RunFolder
from workers.errors import BrokenCheckpointError, RehearsalError
from workers.process.caught_errors import Caught

_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0  # seconds after a failure
_WARN_EVERY = 5  # failures in a row; the first is told, too
_SLICE = 0.2  # seconds

Tell = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class _Job:
    path: Path  # the checkpoint
    keep: Keep


def tell_plainly(text: str) -> None:
    """Show a note outside of the live view."""
    say(f"note: {text}\n")


class Mirror:
    """Copies checkpoints to a store in a thread; no method but `finish` and `results` waits.

    One checkpoint is copied and one waits at most: a newer one takes the place of the one that
    waits, or of one whose copy failed. Failures are told and repeated; they never end the run.
    """

    def __init__(
        self,
        store: Store,
        folder: RunFolder,
        claim: Claim,
        pause: float = _FIRST_PAUSE,
    ) -> None:
        """Prepare; nothing is written before `begin`.

        Args:
            store: The mirror.
            folder: The run folder.
            claim: The run's identity in the mirror.
            pause: Seconds after the first failure; doubles up to a minute.
        """
        self.tell: Tell = tell_plainly
        self._store = store
        self._folder = folder
        self._claim = claim
        self._pause = pause
        self._process = ""
        self._copier = Copier(store, folder, self._check)
        self._turn = threading.Condition()
        self._waiting: _Job | None = None
        self._running: _Job | None = None
        self._ending = False  # no more pauses
        self._over = False  # stopped for good
        self._names: tuple[str, ...] = ()  # complete copies
        self._copied = self._skipped = self._failures = self._in_a_row = 0
        self._trouble = ""
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def begin(self) -> None:
        """Become the writer of the mirror, and start the thread.

        Raises:
            ConfigError: another run took the mirror meanwhile.
            MirrorError: the mirror cannot be written.
            CheckpointError: the run folder cannot be written.
        """
        self._process = take(self._store, self._folder, self._claim)
        self._names = tuple(complete_names(self._store))
        self._thread.start()

    @property
    def names(self) -> tuple[str, ...]:
        """The complete copies, oldest first."""
        return self._names

    def submit(self, path: Path, keep: Keep) -> None:
        """Have a finished checkpoint copied; replaces one that still waits."""
        with self._turn:
            if self._over:
                return
            self._skipped += self._waiting is not None
            self._waiting = _Job(path, keep)
            self._turn.notify_all()

    def pinned(self) -> set[Path]:
        """Checkpoints that must not be deleted yet: they are being copied, or wait for it."""
        with self._turn:
            return {job.path for job in (self._waiting, self._running) if job is not None}

    def finish(self, seconds: Callable[[], float]) -> None:
        """Wait until everything is copied, or the time is over, and tell what is missing.

        Args:
            seconds: How long this may still take; asked again and again, since a signal cuts it.
        """
        with self._turn:
            self._ending = True
            self._turn.notify_all()
        while self._busy() and seconds() > 0:
            with self._turn:
                self._turn.wait(min(_SLICE, max(0.01, seconds())))
        with self._turn:
            left = self._running or self._waiting
            self._ending, self._over = False, self._over or left is not None
        if left is not None:
            self._trouble = self._trouble or "the time for the last copies was over"
            self.tell(
                f"{left.path.name} is not in the mirror; its newest copy is "
                f"{self._names[-1] if self._names else 'none'}: {self._trouble}"
            )

    def results(self, seconds: Callable[[], float]) -> None:
        """Copy summary, report and records after `finish`; told where that fails or takes long."""
        if self._over:
            return
        caught = Caught(RehearsalError)

        def work() -> None:
            with caught:
                self._copier.results()

        thread = threading.Thread(target=work, name="mirror-results", daemon=True)
        thread.start()
        while thread.is_alive() and seconds() > 0:
            thread.join(min(_SLICE, max(0.01, seconds())))
        if thread.is_alive() or caught.error is not None:
            why = getattr(caught.error, "what", "the time for it was over")
            self.tell(f"the results are not in the mirror: {why}")

    def totals(self) -> MirrorTotals:
        """What was copied so far, for summary.json."""
        with self._turn:
            return MirrorTotals(
                url=self._store.url,
                copied=self._copied,
                skipped=self._skipped,
                failures=self._failures,
                newest=self._names[-1] if self._names else "",
                trouble=self._trouble,
            )

    def _busy(self) -> bool:
        with self._turn:
            waits = self._waiting is not None or self._running is not None
            return waits and not self._over and self._thread.is_alive()

    def _check(self) -> None:
        require_writer(self._store, self._claim, self._process)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            caught = Caught(RehearsalError)
            with caught:
                self._copy(job)
            if isinstance(caught.error, RehearsalError):
                self._failed(job, caught.error)
            with self._turn:
                self._running = None
                self._turn.notify_all()
            if caught.error is not None:
                self._rest()

    def _next(self) -> _Job | None:
        """The next checkpoint to copy; None when the thread ends."""
        with self._turn:
            while self._waiting is None and not self._over:
                self._turn.wait()
            self._running, self._waiting = self._waiting, None
            return None if self._over else self._running

    def _copy(self, job: _Job) -> None:
        copied = self._copier.copy(plan_copy(self._folder, job.path, self._claim.run))
        self._names = (*(name for name in self._names if name != job.path.name), job.path.name)
        self._check()
        self._names = tuple(prune(self._store, self._claim.run, job.path.name, job.keep))
        with self._turn:
            self._copied += copied
            again, self._in_a_row, self._trouble = self._in_a_row, 0, ""
        if again and copied:
            self.tell(f"the mirror answers again: {job.path.name} is copied")

    def _failed(self, job: _Job, error: RehearsalError) -> None:
        gone = isinstance(error, BrokenCheckpointError) and not job.path.is_dir()
        with self._turn:
            if gone:  # moved aside when the run went back: nothing is to be copied
                self._skipped += 1
                return
            self._failures += 1
            self._in_a_row += 1
            self._trouble = error.what
            if isinstance(error, TakenOverError):
                self._over = True
            elif self._waiting is None:
                self._waiting = job
            else:
                self._skipped += 1
            told = self._over or self._in_a_row % _WARN_EVERY == 1
        if told:
            self.tell(
                f"mirror: {error.what}, at {error.where} (failure {self._in_a_row} in a row); "
                + ("nothing is copied any more" if self._over else "it is tried again")
            )

    def _rest(self) -> None:
        """Wait after a failure; the end of the run makes it short."""
        longest = min(_LONGEST_PAUSE, self._pause * 2 ** min(self._in_a_row - 1, 16))
        until = time.monotonic() + longest
        with self._turn:
            while not self._over and time.monotonic() < until:
                if self._ending:
                    until = min(until, time.monotonic() + self._pause)
                self._turn.wait(max(0.0, until - time.monotonic()))
                if self._ending:
                    break

"""Waits for workers: each has a deadline and ends at the first failure.

A back end waits without a deadline by default, and in order, even if another rank is already dead.
So the orchestrator waits for workers' answers only through this module.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from orchestrator.process import temporary_folders
from orchestrator.supervision.backend import (
    Backend,
    Call,
    CallError,
    CallFailedError,
    NotArrivedError,
    StoreFullError,
    WorkerGoneError,
)
from orchestrator.supervision.heartbeats import Watch
from workers.errors import DeadlineError, RehearsalError, RoleDiedError, RoleError, RoleHungError
from workers.process.heartbeat import Pulse

T = TypeVar("T")
_GLANCE_SECONDS = 1.0  # to fetch a small record that is ready, perhaps on another node
# (number of the call, its loss) -> its new reference, or None: continue without it.
Again = Callable[[int, RoleError], Any]
_TORCH_MEMORY = "OutOfMemoryError"  # by name: the driver does not import torch
_PEER_SECONDS = 2.0  # Ray reports a death within half a second


@dataclass(slots=True)
class Position:
    """Stage and step of the run; every error of a wait names it."""

    stage: str = "start"
    step: int = 0

    def __str__(self) -> str:
        return f"stage {self.stage}, step {self.step}"


class Pending(Generic[T]):
    """Running calls on the ranks of one role, and how their results combine."""

    def __init__(
        self,
        backend: Backend,
        refs: Sequence[Any],
        names: Sequence[str],
        doing: str,
        seconds: float,
        position: Position,
        combine: Callable[[list[Any]], T],
        watch: Watch | None = None,
        *,
        starting: bool = False,
        again: Again | None = None,
    ) -> None:
        """Follow calls that were started.

        Args:
            backend: Where they run.
            refs: References to their answers, one per rank.
            names: Names of the called workers; known to `watch` if that is given.
            doing: What the calls do, for messages.
            seconds: Timeout, from now on.
            position: Where the run is.
            combine: Builds the value of `result` from the answers.
            watch: Probes all workers of the run during the wait.
            starting: The calls import or load, and may block every thread of a process.
            again: Replaces a lost worker and repeats its call, or returns None to continue with the
                others' answers; None: a lost worker ends the wait.
        """
        self._backend = backend
        self._again = again
        self._without: set[int] = set()  # calls that were left out
        self._watch = watch
        self._starting = watch if starting else None
        if self._starting is not None:
            self._starting.starting(names)
        self._refs = list(refs)
        self._names = list(names)
        self._doing = f"{doing} ({position})"
        self._deadline = time.monotonic() + seconds
        self._seconds = seconds
        self._combine = combine

    def result(self) -> T:
        """Wait for every rank; raise as soon as a rank fails or hangs, or the deadline passes."""
        well = False
        try:
            value = self._collect()
            well = True
            return value
        finally:
            if self._starting is not None:
                names = [n for i, n in enumerate(self._names) if i not in self._without]
                self._starting.started(names, well=well)
                self._starting = None

    @property
    def ready(self) -> bool:
        """Whether `result` would not block."""
        done = self._backend.wait(self._refs, len(self._refs), 0, fetch=True)
        return len(done) == len(self._refs) or time.monotonic() > self._deadline

    def _collect(self) -> T:
        index = {ref: i for i, ref in enumerate(self._refs)}
        results: list[Any] = [None] * len(self._refs)
        left = list(self._refs)
        while left:
            try:
                done = self._next(left, index)
                if done is not None:
                    left.remove(done)
                    others = [(ref, self._names[index[ref]]) for ref in left]
                    results[index[done]] = self._answer(done, self._names[index[done]], others)
            except (RoleDiedError, RoleHungError) as error:
                if self._again is None or error.where not in self._names:
                    raise
                lost = self._names.index(error.where)
                left = [ref for ref in left if index[ref] != lost]
                new = self._again(lost, error)
                self._deadline = time.monotonic() + self._seconds
                if new is None:
                    self._without.add(lost)
                    continue
                left.append(new)
                index[new] = lost
        return self._combine([r for i, r in enumerate(results) if i not in self._without])

    def _answer(self, ref: Any, name: str, others: list[tuple[Any, str]]) -> Any:
        try:
            return self._fetch(ref, name)
        except RoleError as error:
            if type(error) is RoleError:
                self._name_the_dead(others)
            raise

    def _next(self, left: list[Any], index: Mapping[Any, int]) -> Any | None:
        """A finished call, or None to call again; probes the workers meanwhile."""
        remaining = max(0.0, self._deadline - time.monotonic())
        names = [self._names[index[ref]] for ref in left]
        if self._watch is not None:
            self._watch.tick(names)
            self._watch.check(names, self._doing)
        most = remaining if self._watch is None else min(remaining, self._watch.poll_seconds)
        done = self._backend.wait(left, 1, most, fetch=True)
        if done:
            return done[0]
        if time.monotonic() < self._deadline:
            return None
        raise _late(self._seconds, self._doing, ", ".join(names))

    def _name_the_dead(self, others: list[tuple[Any, str]]) -> None:
        """Raise RoleDiedError if a peer of a failed rank has died.

        A rank that waits in a collective for a dead peer fails too, and often before Ray has
        noticed the death, so its error would name the wrong rank.
        """
        until = time.monotonic() + _PEER_SECONDS
        for ref, name in others:
            left = max(0.0, until - time.monotonic())
            if self._backend.wait([ref], 1, left, fetch=True):
                try:
                    self._fetch(ref, name)
                except RoleDiedError:
                    raise
                except RehearsalError:
                    continue  # this peer failed too, without dying

    def _fetch(self, ref: Any, name: str) -> Any:
        seconds = self._deadline - time.monotonic()
        return fetch(self._backend, ref, name, self._doing, seconds, self._watch)


class Arrivals:
    """Records of streaming calls, each as soon as it arrives.

    A call yields pairs: a large record, which stays on its node and is passed on as a reference,
    then a small one, which is fetched here. When the small record is ready, so is the large one.
    """

    def __init__(
        self,
        backend: Backend,
        doing: str,
        seconds: float,
        position: Position,
        watch: Watch | None = None,
    ) -> None:
        self._backend = backend
        self._doing = f"{doing} ({position})"
        self._seconds = seconds
        self._watch = watch
        self._ranks: dict[Any, tuple[int, str]] = {}  # open stream -> rank and its name
        self._large: dict[Any, Any] = {}  # open stream -> large record that waits for its small one

    def add(self, stream: Any, rank: int, name: str) -> None:
        """Listen to one more call."""
        self._ranks[stream] = (rank, name)

    def forget(self, rank: int) -> int:
        """Stop listening to the calls of a process that ended; later records are ignored.

        Returns:
            How many replies had arrived and are discarded.
        """
        thrown = 0
        for stream in [each for each, (of, _) in self._ranks.items() if of == rank]:
            del self._ranks[stream]
            thrown += self._replies(stream, half=self._large.pop(stream, None) is not None)
        return thrown

    def next(self) -> tuple[int, Any, Any] | None:
        """Rank, small record and large reference of the next pair; None when all calls have ended.

        Raises:
            DeadlineError: nothing arrived, and no call ended, within the timeout of a call.
            RehearsalError: the typed error of the first call that failed.
        """
        while self._ranks:
            stream: Any = self._wait()
            rank, name = self._ranks[stream]
            try:
                item = next(stream)
            except StopIteration:
                del self._ranks[stream]
                if stream in self._large:  # without a small record it is the call's error
                    last = self._large.pop(stream)
                    self._fetch(last, name)
                continue
            if stream not in self._large:
                self._large[stream] = item
                continue
            large = self._large.pop(stream)
            return rank, self._fetch(item, name), large
        return None

    def _fetch(self, ref: Any, name: str) -> Any:
        return fetch(self._backend, ref, name, self._doing, self._seconds, self._watch)

    def _wait(self) -> Any:
        """A stream with a record ready; probes the workers meanwhile."""
        until = time.monotonic() + self._seconds
        while (remaining := until - time.monotonic()) > 0:
            names = list(dict.fromkeys(name for _, name in self._ranks.values()))
            if self._watch is not None:
                self._watch.tick(names)
                self._watch.check(names, self._doing)
                remaining = min(remaining, self._watch.poll_seconds)
            streams = list(self._ranks)
            done = self._backend.wait(streams, 1, remaining, fetch=False)
            if done:
                return done[0]
        silent = ", ".join(dict.fromkeys(name for _, name in self._ranks.values()))
        raise _late(self._seconds, self._doing, silent)

    def _replies(self, stream: Any, *, half: bool) -> int:
        """How many complete replies of a stream were not taken; `half`: of one, half was taken."""
        records: list[Any] = [None] if half else []
        while self._backend.wait([stream], 1, 0, fetch=False):
            try:
                records.append(next(stream))
            except StopIteration:
                break
        # The small half comes last. An error of the call or its process takes a record's place.
        return sum(glance(self._backend, small) is not None for small in records[1::2])


def _late(seconds: float, doing: str, silent: str) -> DeadlineError:
    return DeadlineError(
        f"no answer within {seconds:.0f} s: {doing}",
        where=silent,
        fix="if the work takes that long raise run.call_seconds, or run.role_start_seconds for a "
        "start or a load; else look at the role's log for what it hangs on",
    )


def fetch(
    backend: Backend,
    ref: Any,
    name: str,
    doing: str,
    seconds: float,
    watch: Watch | None = None,
) -> Any:
    """Fetch the record of a reference; raises the typed error of the call that produces it."""
    try:
        return backend.get(ref, max(1.0, seconds))
    except CallFailedError as error:
        if watch is not None:
            watch.failed(name)
        raise _as_typed(error.cause, name, doing) from error
    except WorkerGoneError as error:
        why = "; ".join(filter(None, (str(error).rstrip("."), error.output)))
        kept = ""
        if watch is not None:
            why, kept = watch.died(name, why), watch.keeps_output
        raise RoleDiedError(
            f"the process of {name} ended: {doing}; {why}",
            where=name,
            fix=f"its output says why{kept}",
        ) from error
    except NotArrivedError as error:
        raise DeadlineError(
            f"the result of {name} did not arrive: {doing}",
            where=name,
            fix="check the network between the nodes and the object store's size",
        ) from error
    except StoreFullError as error:
        raise _no_room(name, doing) from error
    except CallError as error:
        raise RoleError(f"{doing}: {error}", where=name) from error


def _no_room(name: str, doing: str) -> RoleError:
    return RoleError(
        "the object store is full, and so is the disk of the temporary folder "
        f"{temporary_folders.home()}",
        where=f"{name}, {doing}",
        fix="free space on that disk, set TMPDIR to a folder on another one, or raise "
        "cluster.object_store_mib",
    )


def _as_typed(cause: BaseException, name: str, doing: str) -> RehearsalError:
    """The typed error that the role raised, or a RoleError that quotes any other."""
    if isinstance(cause, RehearsalError):
        cause.where = f"{cause.where}; {name}, {doing}" if cause.where else f"{name}, {doing}"
        return cause
    if isinstance(cause, MemoryError) or type(cause).__name__ == _TORCH_MEMORY:
        return RoleError(
            f"{name} ran out of memory: {str(cause).partition(chr(10))[0]}",
            where=doing,
            fix="lower trainer.micro_batch_tokens or reward.micro_batch_tokens, raise "
            "trainer.zero_stage, or set model.gradient_checkpointing=true; of an engine lower "
            "rollout.max_concurrent_sequences or rollout.gpu_memory_fraction",
        )
    return RoleError(
        f"{name} failed: {type(cause).__name__}: {cause}",
        where=doing,
        fix="this is not an expected failure; error.log in the run folder holds the traceback",
    )


def glance(backend: Backend, ref: Any) -> Any:
    """The answer of a call, or None while it runs or if it failed; never raises its errors."""
    try:
        done = backend.wait([ref], 1, 0, fetch=True)
        return backend.get(ref, _GLANCE_SECONDS) if done else None
    except CallError:
        return None


class PulseLine:
    """Probes one worker, independently of its queue of calls."""

    def __init__(self, backend: Backend, worker: Any, name: str) -> None:
        self._backend = backend
        self._worker = worker
        self._name = name
        self._asked: Any = None

    def ask(self) -> None:
        """Send a probe."""
        self._asked = self._backend.health(self._worker, "pulse")

    def answer(self) -> Pulse | None:
        """The answer, or None if it has not arrived.

        Raises:
            RoleDiedError: the process ended.
        """
        return self._got(self._asked) if self._done(self._asked) else None

    def _done(self, ref: Any) -> bool:
        return bool(self._backend.wait([ref], 1, 0, fetch=True))

    def _got(self, ref: Any) -> Any:
        try:
            return self._backend.get(ref, 1.0)
        except CallError as error:
            raise RoleDiedError(
                f"the process of {self._name} ended ({error})",
                where=self._name,
            ) from error

    def stacks(self, seconds: float) -> str:
        """Stacks of its threads; "" if it does not answer within the time."""
        try:
            return self._backend.get(self._backend.health(self._worker, "stacks"), seconds)
        except CallError:  # the process ended or is stopped
            return ""


class EngineLine(PulseLine):
    """Also has an idle engine sample a token, because a process can answer with a broken engine."""

    def __init__(self, backend: Backend, worker: Any, name: str) -> None:
        super().__init__(backend, worker, name)
        self._idle = False
        self._token: Any = None
        self._beats = 0

    def ask(self) -> None:
        """Send a probe, and request a token if the engine is idle and no token is pending."""
        super().ask()
        if self._idle and self._token is None:
            self._token = self._backend.start(self._worker, Call("alive"))

    def answer(self) -> Pulse | None:
        """The answer; None if it, or the token of an otherwise idle engine, has not arrived."""
        pulse = super().answer()
        if pulse is None:
            return None
        if self._token is not None and self._done(self._token):
            self._got(self._token)
            self._token = None
        self._idle = pulse.verb == ""
        moved, self._beats = pulse.beats > self._beats, pulse.beats
        works = moved or self._token is None or pulse.verb not in ("", "alive")
        return pulse if works else None


def first(results: list[Any]) -> Any:
    """Combine: the result of rank 0."""
    return results[0]


def everything(results: list[Any]) -> list[Any]:
    """Combine: the results of all ranks, in order."""
    return results


def nothing(results: list[Any]) -> None:
    """Combine: no result, only completion."""
    del results

"""A back end without processes: a worker is an object, and a reference is a `Future`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from orchestrator.supervision.backend import (
    Call,
    CallError,
    CallFailedError,
    NotArrivedError,
    WorkerClass,
)
from orchestrator.supervision.serving import answer, answers
from workers.process.heartbeat import pulse

_FETCH_SECONDS = 60.0
LATE = NotArrivedError("late")  # from `LocalBackend.fault`: the call never answers


@dataclass(eq=False)
class LocalRef:
    """An answer, or one half of a split one."""

    answer: Future[Any]
    half: int | None = None

    def value(self, seconds: float | None = None) -> Any:
        found = self.answer.result(seconds)
        return found if self.half is None else found[self.half]


@dataclass(eq=False)
class LocalStream:
    """References to the records of a call that answered in parts."""

    refs: deque[LocalRef]

    def __next__(self) -> LocalRef:
        if self.refs:
            return self.refs.popleft()
        raise StopIteration


@dataclass
class LocalBackend:
    """Workers of this process.

    Attributes:
        make: builds a worker from the class that a group names, and its rank.
        fault: the error with which a call of this method fails; None: it is carried out.
        threads: each worker runs in a thread of its own, so that workers can wait for each other;
            without threads, a call runs when it is started.
        fetched: the records that each call of a worker has fetched: (worker, method, records).
    """

    make: Callable[[WorkerClass, int], Any] = lambda worker, rank: worker.load()(rank)
    fault: Callable[[str], Exception | None] = lambda verb: None
    threads: bool = False
    fetched: list[tuple[Any, str, list[Any]]] = field(default_factory=list)
    _pools: dict[int, ThreadPoolExecutor] = field(default_factory=dict)

    def create(self, worker: WorkerClass, rank: int, options: Mapping[str, Any]) -> Any:
        made = self.make(worker, rank)
        if self.threads:
            self._pools[id(made)] = ThreadPoolExecutor(1, f"rank {rank}")
        return made

    def start(self, worker: Any, call: Call, *args: Any) -> Any:
        run = partial(answer, worker, call, _values(args), self._fetch(worker, call))
        whole = self._run(worker, call, run)
        halves = LocalRef(whole, 0), LocalRef(whole, 1)
        return LocalRef(whole) if call.split is None else halves

    def stream(self, worker: Any, call: Call, *args: Any) -> LocalStream:
        refs = deque[LocalRef]()

        def run() -> None:
            for record in answers(worker, call, _values(args), self._fetch(worker, call)):
                refs.append(self.put(record))

        ended = self._run(worker, call, run)
        if not ended.done() or ended.exception() is not None:
            refs.append(LocalRef(ended))
        return LocalStream(refs)

    def tell(self, worker: Any, call: Call, *args: Any) -> None:
        getattr(worker, call.verb)(*_values(args))

    def health(self, worker: Any, what: str) -> LocalRef:
        return self.put(pulse() if what == "pulse" else "")

    def wait(self, refs: Sequence[Any], count: int, seconds: float, *, fetch: bool) -> list[Any]:
        last = [_last(ref) for ref in refs]
        if not any(each.done() for each in last):
            wait(last, seconds, FIRST_COMPLETED)
        return [ref for ref, each in zip(refs, last, strict=True) if each.done()][:count]

    def get(self, ref: LocalRef, seconds: float) -> Any:
        try:
            return ref.value(seconds)
        except CallError:
            raise
        except TimeoutError as error:
            raise NotArrivedError("late") from error
        except Exception as error:
            raise CallFailedError(error) from error

    def put(self, record: Any) -> LocalRef:
        there = Future[Any]()
        there.set_result(record)
        return LocalRef(there)

    def end(self, worker: Any) -> None:
        if self.threads:
            self._pools.pop(id(worker)).shutdown(wait=False)

    def _run(self, worker: Any, call: Call, run: Callable[[], Any]) -> Future[Any]:
        found, error = Future[Any](), self.fault(call.verb)
        if error is LATE:
            return found
        if error is not None:
            found.set_exception(error)
        elif self.threads:
            return self._pools[id(worker)].submit(run)
        else:
            try:
                found.set_result(run())
            except Exception as failed:  # noqa: BLE001  raised by `get`
                found.set_exception(failed)
        return found

    def _fetch(self, worker: Any, call: Call) -> Callable[[Sequence[LocalRef]], list[Any]]:
        def fetch(refs: Sequence[LocalRef]) -> list[Any]:
            found = [self.get(ref, _FETCH_SECONDS) for ref in refs]
            self.fetched.append((worker, call.verb, found))
            return found

        return fetch


def _values(args: Sequence[Any]) -> list[Any]:
    """Arguments of a call; a stored one is a reference."""
    return [each.value() if isinstance(each, LocalRef) else each for each in args]


def _last(ref: LocalRef | LocalStream) -> Future[Any]:
    """What is waited for: of a stream, its first record, which may be its end."""
    if isinstance(ref, LocalRef):
        return ref.answer
    if ref.refs:
        return ref.refs[0].answer
    ended = Future[Any]()
    ended.set_result(None)
    return ended

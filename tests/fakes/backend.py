"""A back end without processes: a call runs when it is started; its answer is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.supervision.backend import Call, CallFailedError
from orchestrator.supervision.serving import answer, answers
from workers.errors import RehearsalError
from workers.process.heartbeat import pulse


@dataclass(eq=False)
class LocalRef:
    """A record, or the error in its place."""

    value: Any = None
    error: Exception | None = None


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
    """Workers of this process; `make` builds one from the class that a group names, and its rank.

    `fetched` lists the records that each call of a worker has fetched: (worker, verb, records).
    """

    make: Callable[[type, int], Any] = lambda worker, rank: worker(rank)
    fetched: list[tuple[Any, str, list[Any]]] = field(default_factory=list)

    def create(self, worker: type, rank: int, options: Mapping[str, Any]) -> Any:
        return self.make(worker, rank)

    def start(self, worker: Any, call: Call, *args: Any) -> Any:
        try:
            found = answer(worker, call, args, self._fetch(worker, call))
        except (RehearsalError, CallFailedError) as error:
            failed = LocalRef(error=_as_call_error(error))
            return failed if call.split is None else (failed, failed)
        return LocalRef(found) if call.split is None else tuple(map(LocalRef, found))

    def stream(self, worker: Any, call: Call, *args: Any) -> LocalStream:
        refs = deque[LocalRef]()
        try:
            refs.extend(map(LocalRef, answers(worker, call, args, self._fetch(worker, call))))
        except (RehearsalError, CallFailedError) as error:
            refs.append(LocalRef(error=_as_call_error(error)))
        return LocalStream(refs)

    def tell(self, worker: Any, call: Call, *args: Any) -> None:
        self.start(worker, call, *args)

    def health(self, worker: Any, what: str) -> LocalRef:
        return LocalRef(pulse() if what == "pulse" else "")

    def wait(self, refs: Sequence[Any], count: int, seconds: float, *, fetch: bool) -> list[Any]:
        return list(refs[:count])

    def get(self, ref: LocalRef, seconds: float) -> Any:
        if ref.error is not None:
            raise ref.error
        return ref.value

    def put(self, record: Any) -> LocalRef:
        return LocalRef(record)

    def end(self, worker: Any) -> None:
        pass

    def _fetch(self, worker: Any, call: Call) -> Callable[[Sequence[LocalRef]], list[Any]]:
        def fetch(refs: Sequence[LocalRef]) -> list[Any]:
            found = [self.get(ref, 0.0) for ref in refs]
            self.fetched.append((worker, call.verb, found))
            return found

        return fetch


def _as_call_error(error: Exception) -> Exception:
    return CallFailedError(error) if isinstance(error, RehearsalError) else error

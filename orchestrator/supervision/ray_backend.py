"""The back end of a run: each worker is a Ray actor, and records are in Ray's object store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from orchestrator.supervision.backend import (
    Call,
    CallError,
    CallFailedError,
    NotArrivedError,
    Ref,
    StoreFullError,
    WorkerClass,
    WorkerGoneError,
)
from orchestrator.supervision.serving import answer, answers
from orchestrator.supervision.worker_output import output_of
from workers.errors import DeadlineError
from workers.process.heartbeat import Pulse, pulse, stacks

# Calls of these concurrency groups run at the same time as all others, which run in turn.
_CONTROL, _HEALTH, _WAITING = "control", "health", "waiting"
_FETCH_SECONDS = 600.0
# What Ray raises if the process of a worker has ended, for any reason.
_GONE = (RayActorError, OutOfMemoryError, NodeDiedError)


class _Host:
    """An actor that holds a worker."""

    worker: WorkerClass

    def __init__(self, rank: int) -> None:
        self._worker = self.worker.load()(rank)

    def run(self, call: Call, *args: Any) -> Any:
        return answer(self._worker, call, args, _fetch)

    @ray.method(num_returns="streaming")
    def stream(self, call: Call, *args: Any) -> Iterator[Any]:
        yield from answers(self._worker, call, args, _fetch)

    @ray.method(concurrency_group=_CONTROL, num_returns=0)
    def tell(self, call: Call, *args: Any) -> None:
        # Not `answer`: its reply would carry the running call's times, and nobody reads it.
        getattr(self._worker, call.verb)(*args)

    @ray.method(concurrency_group=_HEALTH)
    def pulse(self) -> Pulse:
        return pulse()

    @ray.method(concurrency_group=_HEALTH)
    def stacks(self) -> str:
        return stacks()


def _fetch(refs: Sequence[Ref]) -> list[Any]:
    """Fetch records inside an actor; those on the same node are read from shared memory."""
    try:
        return ray.get(list(refs), timeout=_FETCH_SECONDS)
    except GetTimeoutError as error:
        raise DeadlineError(
            f"records of other roles did not arrive within {_FETCH_SECONDS:.0f} s",
            fix="check the network between the nodes and the object store's size",
        ) from error


class RayBackend:
    """See `backend.Backend`."""

    def create(self, worker: WorkerClass, rank: int, options: Mapping[str, Any]) -> Any:
        """Start an actor, whose process Ray names after the worker's class."""
        remote: Any = ray.remote
        host = type(worker.name, (_Host,), {"worker": worker})
        groups = {_CONTROL: 1, _HEALTH: 1}
        if worker.overlapping:
            groups[_WAITING] = worker.overlapping
        make = remote(concurrency_groups=groups)(host)
        return make.options(**options).remote(rank)

    def start(self, worker: Any, call: Call, *args: Any) -> Any:
        """Start a call on an actor."""
        options: dict[str, Any] = {"concurrency_group": _CONTROL} if call.beside else {}
        if call.overlaps:
            options = {"concurrency_group": _WAITING}
        if call.split is not None:
            options["num_returns"] = 2
        return worker.run.options(**options).remote(call, *args)

    def stream(self, worker: Any, call: Call, *args: Any) -> Any:
        """Start a streaming call on an actor."""
        return worker.stream.remote(call, *args)

    def tell(self, worker: Any, call: Call, *args: Any) -> None:
        """Start a call without an answer."""
        worker.tell.remote(call, *args)

    def health(self, worker: Any, what: str) -> Ref:
        """Ask a separate thread of the actor."""
        return getattr(worker, what).remote()

    def wait(self, refs: Sequence[Ref], count: int, seconds: float, *, fetch: bool) -> list[Ref]:
        """Wait with a timeout."""
        done, _ = ray.wait(list(refs), num_returns=count, timeout=seconds, fetch_local=fetch)
        return done

    def get(self, ref: Ref, seconds: float) -> Any:
        """Fetch an object, with Ray's errors told apart."""
        try:
            return ray.get(ref, timeout=seconds)
        except RayTaskError as error:
            if isinstance(error.cause, OutOfDiskError):
                raise StoreFullError(str(error)) from error
            raise CallFailedError(error.cause) from error
        except OutOfMemoryError as error:
            raise WorkerGoneError(
                "Ray ended it because the machine ran out of memory "
                f"(RAY_memory_usage_threshold): {_first_line(error)}"
            ) from error
        except _GONE as error:
            raise WorkerGoneError(_first_line(error), output_of(str(error))) from error
        except GetTimeoutError as error:
            raise NotArrivedError(_first_line(error)) from error
        except OutOfDiskError as error:
            raise StoreFullError(str(error)) from error
        except RayError as error:
            raise CallError(str(error)) from error

    def put(self, record: Any) -> Ref:
        """Store an object."""
        return ray.put(record)

    def end(self, worker: Any) -> None:
        """Kill an actor."""
        ray.kill(worker, no_restart=True)


def _first_line(error: RayError) -> str:
    """The rest of Ray's message, on thresholds and processes, fills pages."""
    return str(error).partition("\n")[0]

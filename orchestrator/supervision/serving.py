"""A worker's side of a call: fetch its arguments, run the method, split and time its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from orchestrator.supervision.backend import Call, Ref, Stored
from workers.process.call_timing import fetching, timed, timed_stream
from workers.process.heartbeat import shown

Fetch = Callable[[Sequence[Ref]], list[Any]]  # brings records to this worker


def answer(worker: Any, call: Call, args: Sequence[Any], fetch: Fetch) -> Any:
    """Run a call; its answer is a `Reply`, or with `call.split` a record and a `Reply`."""

    def run() -> Any:
        found = getattr(worker, call.verb)(*_brought(args, fetch))
        return call.split(found) if call.split is not None else found

    # A call beside another one is over at once, and `pulse` goes on showing the other one.
    with nullcontext() if call.beside else shown(call.verb):
        return timed(run, call.verb, results=2 if call.split is not None else 1)


def answers(worker: Any, call: Call, args: Sequence[Any], fetch: Fetch) -> Iterator[Any]:
    """Run a call that answers in parts; each part gives a record and a `Reply`."""
    split = call.split
    assert split is not None, "parts have a large and a small half"

    def run() -> Iterator[Any]:
        for part in getattr(worker, call.verb)(*_brought(args, fetch)):
            yield from split(part)

    with shown(call.verb):
        yield from timed_stream(run(), call.verb)


def _brought(args: Sequence[Any], fetch: Fetch) -> Iterator[Any]:
    """The arguments, with the records of other workers in place of references to them."""
    for each in args:
        if isinstance(each, Stored):
            with fetching():
                yield fetch(each.refs) if each.refs else []
        else:
            yield each

"""Render and tokenise in several processes, with the results in order."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Protocol

from workers.data.rows.examples import Example, Rejected
from workers.data.tokenize.data_sets import Rendering, SetKind
from workers.data.tokenize.encode import Chunk, Encoder
from workers.errors import DeadlineError, RoleDiedError

CHUNK = 256  # examples per task
_AHEAD = 2  # tasks per process that are submitted ahead of their results

Examples = Iterable[Example | Rejected]


class Encode(Protocol):
    """Encodes examples of one kind as chunks, in the order of the examples."""

    def __call__(self, kind: SetKind, examples: Examples) -> Iterator[Chunk]:
        """Yield chunks of at most `CHUNK` examples."""
        ...


@contextmanager
def open_encoder(
    rendering: Rendering, workers: int, call_seconds: float, own: Encoder
) -> Iterator[Encode]:
    """An encoder over `workers` processes, or in this process.

    The chunks are the same for any number of processes: this process cuts the examples into tasks
    and yields the results in the order of the tasks. A bounded number of tasks wait at a time.

    Args:
        rendering: Settings of the encoder in each process.
        workers: 1 = encode in this process.
        call_seconds: Deadline for one chunk.
        own: The encoder of this process.

    Raises:
        RoleDiedError: A process ended.
        DeadlineError: A chunk took too long.
    """
    if workers == 1:
        yield lambda kind, examples: (own.encode(kind, part) for part in _cut(examples))
        return
    before = {child.pid for child in multiprocessing.active_children()}
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_set_up, initargs=(rendering,)
    )
    try:
        yield lambda kind, examples: _in_order(pool, workers, call_seconds, kind, examples)
    except DeadlineError:
        for child in multiprocessing.active_children():
            if child.pid not in before:
                child.kill()  # shutdown would wait forever for a hung process
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, workers: int, call_seconds: float, kind: SetKind, examples: Examples
) -> Iterator[Chunk]:
    waiting: deque[Future[Chunk]] = deque()
    for part in _cut(examples):
        waiting.append(_submit(pool, kind, part))
        if len(waiting) == _AHEAD * workers:
            yield _result(waiting.popleft(), call_seconds)
    while waiting:
        yield _result(waiting.popleft(), call_seconds)


def _cut(examples: Examples) -> Iterator[list[Example | Rejected]]:
    iterator = iter(examples)
    while part := list(islice(iterator, CHUNK)):
        yield part


def _submit(
    pool: ProcessPoolExecutor, kind: SetKind, part: Sequence[Example | Rejected]
) -> Future[Chunk]:
    try:
        return pool.submit(_encode, kind, part)
    except BrokenProcessPool as error:
        raise _died() from error


def _result(future: Future[Chunk], call_seconds: float) -> Chunk:
    try:
        return future.result(call_seconds)
    except BrokenProcessPool as error:
        raise _died() from error
    except TimeoutError as error:
        raise DeadlineError(
            f"a data-loading process took over {call_seconds:g} s for {CHUNK} rows",
            where="data.workers",
            fix="raise run.call_seconds, or use data.workers=1 to see where it is",
        ) from error


def _died() -> RoleDiedError:
    return RoleDiedError(
        "a data-loading process ended",
        where="data.workers",
        fix="look for the kernel's out-of-memory killer; fewer processes need less memory",
    )


_encoder: Encoder | None = None  # the only state of a data-loading process


def _set_up(rendering: Rendering) -> None:
    global _encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _encoder = Encoder(rendering)


def _encode(kind: SetKind, part: Sequence[Example | Rejected]) -> Chunk:
    assert _encoder is not None, "_set_up runs first"
    return _encoder.encode(kind, part)

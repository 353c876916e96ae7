"""Writes of many labelers at the same time, committed together before any is acknowledged."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from orchestrator.label.store import Store

Work = Callable[[Store], object]


class Writer:
    """Runs writes in one thread; those that wait for the disk at the same time share a commit.

    A commit waits for the disk (8 ms on a virtual machine), so 40 labelers would wait for each
    other's.

    Args:
        store: Used by this object's thread alone.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._waiting: list[tuple[Work, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def write(self, work: Work) -> None:
        """Run `work`; returns when it is on the disk. Its exception is raised here."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        # a browser that leaves cancels its request, not the write
        await asyncio.shield(done)

    async def close(self) -> None:
        """Finish what was asked for."""
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            commit = functools.partial(self._commit, [work for work, _ in batch])
            try:
                found: Sequence[BaseException | None] = await loop.run_in_executor(
                    self._thread, commit
                )
            except Exception as error:  # noqa: BLE001  every caller gets it
                found = [error] * len(batch)
            for (_, done), error in zip(batch, found, strict=True):
                if done.cancelled():
                    continue
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)

    def _commit(self, batch: list[Work]) -> Sequence[BaseException | None]:
        """Run all; those that fail are undone alone. Raises only if nothing is on the disk."""
        with self._store.transaction():
            return [self._store.attempt(work) for work in batch]

"""The server of a reward model: two protocols, health, a bounded queue, and batches.

Sequences of all requests wait in one queue, and one thread scores them in batches, in their order.
A request whose sequences do not fit into the queue is refused at once (HTTP 429), so that clients
wait instead of memory growing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from workers.scorers.served_model import Item, RefusedError, Score, plain_exchanges, queries

MOST_BYTES = 16 << 20  # of a request
Scores = Callable[[Sequence[Item]], list[Score]]


class FullError(Exception):
    """The queue has no room for a request."""


@dataclass(slots=True)
class Batcher:
    """Collects the sequences of requests, and scores them in batches in a thread."""

    scores: Scores
    batch: int  # most sequences scored together
    queue: int  # most sequences that wait
    _waiting: deque[tuple[Item, asyncio.Future[Score]]] = field(default_factory=deque)
    _come: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def waiting(self) -> int:
        """Sequences that wait."""
        return len(self._waiting)

    async def ask(self, items: Sequence[Item]) -> list[Score]:
        """The scores of a request, once its batches are done.

        Raises:
            FullError: the queue has no room for them.
        """
        if len(items) + len(self._waiting) > self.queue:
            raise FullError
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in items]
        self._waiting.extend(zip(items, futures, strict=True))
        self._come.set()
        return list(await asyncio.gather(*futures))

    async def work(self) -> None:
        """Score until cancelled."""
        while True:
            await self._come.wait()
            taken = [self._waiting.popleft() for _ in range(min(self.batch, len(self._waiting)))]
            if not self._waiting:
                self._come.clear()
            # those whose client has gone are not computed
            alive = [(each, future) for each, future in taken if not future.done()]
            if not alive:
                continue
            try:
                found = await asyncio.to_thread(self.scores, [each for each, _ in alive])
            except Exception as error:  # noqa: BLE001 - becomes the answer of these requests
                for _, future in alive:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), score in zip(alive, found, strict=True):
                if not future.done():
                    future.set_result(score)


def build_app(scores: Scores, *, key: str, batch: int, queue: int) -> Starlette:
    """The application.

    Args:
        scores: Scores a batch; called in one thread at a time.
        key: Bearer key that clients must send; "" = none.
        batch: Most sequences scored together.
        queue: Most sequences that wait.
    """
    batcher = Batcher(scores, batch, queue)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        working = asyncio.create_task(batcher.work())
        yield
        working.cancel()

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "waiting": batcher.waiting, "queue": batcher.queue})

    async def plain(request: Request) -> Response:
        return await _answered(request, key, batcher, plain_exchanges, _scores)

    async def openrlhf(request: Request) -> Response:
        return await _answered(request, key, batcher, queries, _rewards)

    routes = [
        Route("/health", health),
        Route("/score", plain, methods=["POST"]),
        Route("/get_reward", openrlhf, methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


async def _answered(
    request: Request,
    key: str,
    batcher: Batcher,
    read: Callable[[Any], Sequence[Item]],
    write: Callable[[list[Score]], dict[str, Any]],
) -> Response:
    if key and not hmac.compare_digest(_sent_key(request), key.encode()):
        return _refusal(401, "the bearer key is missing or wrong")
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return _refusal(415, "the content type must be application/json")
    body = await _body(request)
    if body is None:
        return _refusal(413, f"the request is longer than {MOST_BYTES >> 20} MiB")
    try:
        items = read(json.loads(body))
    except (RefusedError, ValueError, RecursionError) as error:
        return _refusal(422, str(error)[:200])
    if not items:
        return JSONResponse(write([]))
    try:
        return JSONResponse(write(await batcher.ask(items)))
    except FullError:
        return JSONResponse({"error": "the queue is full"}, 429, {"retry-after": "1"})


def _sent_key(request: Request) -> bytes:
    kind, _, sent = request.headers.get("authorization", "").partition(" ")
    return sent.strip().encode() if kind.lower() == "bearer" else b""


async def _body(request: Request) -> bytes | None:
    """The body; None if it is too long."""
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > MOST_BYTES:
            return None
    return bytes(found)


def _refusal(status: int, why: str) -> Response:
    return JSONResponse({"error": why}, status)


def _scores(found: list[Score]) -> dict[str, Any]:
    return {"scores": [{"error": s.reason} if s.reason else {"score": s.value} for s in found]}


def _rewards(found: list[Score]) -> dict[str, Any]:
    """OpenRLHF has no errors for single sequences: null, which our client counts as a failure."""
    values = [score.value if math.isfinite(score.value) else None for score in found]
    return {"rewards": values, "scores": values}

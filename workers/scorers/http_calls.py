"""Many HTTP requests at a time with deadlines and retries, for servers of others.

Redirects are not followed: a key would go to another host. Timeouts are asyncio's, because those of
httpx restart with every byte received.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from workers.errors import ConfigError
from workers.process.heartbeat import beat
from workers.scorers.http_answer import Answer, TooLongError, post

T = TypeVar("T")

RETRIED = frozenset({408, 409, 425, 429})  # and every 5xx
_MOST_BACKOFF = 60.0  # seconds
_BEAT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Patience with a server."""

    concurrency: int  # requests at the same time
    request_seconds: float  # deadline of one request, answer included
    retries: int  # of a request: after overload, server errors, lost connections
    backoff_seconds: float  # before the first retry; doubles, at most 60 s
    deadline_seconds: float  # for all requests of one call, retries included

    def check(self, key: str) -> None:
        """Check the numbers; `key` is the section that holds them."""
        if not 1 <= self.concurrency <= 10_000:
            raise ConfigError(
                f"concurrency={self.concurrency}",
                where=f"{key}.concurrency",
                fix="give 1 to 10,000",
            )
        for name in ("request_seconds", "deadline_seconds", "backoff_seconds"):
            if not 0.0 < getattr(self, name) <= 1e6:
                raise ConfigError(
                    f"{name}={getattr(self, name):g}",
                    where=f"{key}.{name}",
                    fix="give seconds above 0, a million at most",
                )
        if not 0 <= self.retries <= 100:
            raise ConfigError(
                f"retries={self.retries}", where=f"{key}.retries", fix="give 0 to 100"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """Settings of a source that asks a server."""

    concurrency: int = 16  # requests of one call at the same time
    request_seconds: float = 60.0
    retries: int = 3
    backoff_seconds: float = 1.0
    deadline_seconds: float = 300.0  # for all sequences of a call, retries included

    @property
    def limits(self) -> Limits:
        """Patience with the server."""
        return Limits(
            self.concurrency, self.request_seconds, self.retries, self.backoff_seconds,
            self.deadline_seconds,
        )  # fmt: skip


class FailedError(Exception):
    """A request got no usable answer: a fixed reason, and details of this one."""

    def __init__(self, reason: str, words: str = "") -> None:
        super().__init__(reason)
        self.reason, self.words = reason, words


@dataclass(slots=True)
class Server:
    """A server, asked by one call of a scorer."""

    url: str
    limits: Limits
    key: str = field(repr=False)  # "" = none; never written or shown
    _resume_at: float = 0.0  # no request is sent before this time
    _ends_at: float = 0.0

    def gather(
        self,
        jobs: Sequence[Callable[[httpx.AsyncClient], Awaitable[T]]],
        late: Callable[[], T],
    ) -> list[T]:
        """Run all jobs, `concurrency` at a time; those that the deadline ends give `late()`."""
        return asyncio.run(self._gather(jobs, late))

    async def _gather(
        self,
        jobs: Sequence[Callable[[httpx.AsyncClient], Awaitable[T]]],
        late: Callable[[], T],
    ) -> list[T]:
        head = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx.Limits(max_connections=self.limits.concurrency)
        turns = asyncio.Semaphore(self.limits.concurrency)
        self._ends_at = time.monotonic() + self.limits.deadline_seconds
        async with httpx.AsyncClient(headers=head, limits=limits, timeout=None) as http:

            async def one(job: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
                try:
                    async with asyncio.timeout_at(loop_time(self._ends_at)), turns:
                        return await job(http)
                except TimeoutError:
                    return late()

            beating = asyncio.create_task(_beat())
            try:
                return list(await asyncio.gather(*map(one, jobs)))
            finally:
                beating.cancel()

    async def ask(self, http: httpx.AsyncClient, body: Any) -> Answer:
        """Post a body; returns an answer of status 200.

        Raises:
            FailedError: there is none after all retries.
        """
        failed = FailedError("not asked")
        for attempt in range(self.limits.retries + 1):
            if attempt:
                await asyncio.sleep(self._backoff(attempt))
            while (pause := self._resume_at - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            try:
                async with asyncio.timeout(self.limits.request_seconds):
                    answer = await post(http, self.url, body)
            except TimeoutError:
                failed = FailedError(f"no answer within {self.limits.request_seconds:g} s")
                continue
            except TooLongError as error:
                raise FailedError(str(error)) from error
            except httpx.RequestError as error:
                failed = FailedError(f"no connection ({type(error).__name__})")
                continue
            if answer.status == 200:
                return answer
            failed = FailedError(_status(answer.status), self._told(answer))
            if answer.status not in RETRIED and answer.status < 500:
                break
            self._hold_back(answer)
        raise failed

    def _backoff(self, attempt: int) -> float:
        return min(_MOST_BACKOFF, self.limits.backoff_seconds * 2 ** (attempt - 1))

    def _hold_back(self, answer: Answer) -> None:
        """Delay all requests until the time that the answer names, or give up beyond the end."""
        wait = seconds_of(answer.retry_after, answer.date)
        if time.monotonic() + wait > self._ends_at:
            raise FailedError(
                "the server asks to wait beyond the deadline", answer.retry_after[:40]
            )
        self._resume_at = max(self._resume_at, time.monotonic() + wait)

    def _told(self, answer: Answer) -> str:
        """The beginning of the server's message, with the key masked if it repeats it."""
        text = answer.body[:2000].decode("utf-8", "replace")
        return (text.replace(self.key, "***") if self.key else text)[:120]


def loop_time(monotonic: float) -> float:
    """A time of time.monotonic() on the clock of the running loop."""
    return asyncio.get_running_loop().time() + monotonic - time.monotonic()


async def _beat() -> None:
    while True:  # the deadline bounds the waits, so they count as progress
        beat()
        await asyncio.sleep(_BEAT_SECONDS)


def _status(status: int) -> str:
    return f"HTTP {status}, a redirect" if 300 <= status < 400 else f"HTTP {status}"


def seconds_of(retry_after: str, date: str) -> float:
    """Seconds of a Retry-After header (RFC 9110, section 10.2.3): a number or a date; 0 if none.

    A date is compared with the server's own date header: the local clock may differ.
    """
    try:
        wait = float(retry_after)
        return wait if wait > 0.0 else 0.0  # not NaN
    except ValueError:
        pass
    try:
        until, now = parsedate_to_datetime(retry_after), parsedate_to_datetime(date)
        return max(0.0, until.timestamp() - now.timestamp())
    except ValueError:
        return 0.0

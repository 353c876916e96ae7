"""Many questions to a chat model at an OpenAI-compatible URL: retries, deadlines, and a cache.

Every answer is cached immediately, so a run that is started again after an error or a kill sends
only the missing questions.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import httpx

from workers.errors import ConfigError, DeadlineError, JudgeError
from workers.scorers.http_answer import Answer, TooLongError, content_of, post
from workers.scorers.http_calls import RETRIED, FailedError, seconds_of
from workers.scorers.judge_cache import VerdictCache

_MOST_BACKOFF = 60.0  # seconds
_STREAK = 20  # failures in a row after which the endpoint counts as broken


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """Address, model and limits of a chat model that judges, labels or criticises."""

    url: str  # without "/chat/completions"
    model: str
    instruction: str  # with {prompt}, {first} and {second}; "" = the questions are made elsewhere
    request: str  # JSON object merged into every request
    key: str = field(repr=False)  # "" = none; never written or shown
    key_variable: str  # environment variable that held the key, for messages
    concurrency: int
    request_seconds: float
    retries: int
    backoff_seconds: float
    deadline_seconds: float
    failed_fraction: float
    where: str = "evaluate.endpoint"  # the section of these keys, for errors
    role: str = "judge"  # what errors call it


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions, and what they are for."""

    questions: Mapping[str, str]  # key -> text
    uses: Mapping[str, list[int]]  # key -> numbers of the items that need its answer
    items: int  # what `failed_fraction` is a part of
    # The cached part of an answer of status 200 that is a chat completion; raises FailedError if it
    # has none, which is not asked again.
    read: Callable[[Answer], str]
    noun: str = "pairs"  # what the items are
    answer: str = "verdict"  # what is read


def interview(spec: EndpointSpec, cache: VerdictCache, asked: Asked) -> dict[str, str]:
    """Send the questions; their answers are in the cache afterwards.

    Returns:
        The reason of each question that got no answer, by its key.

    Raises:
        ConfigError: the endpoint refuses the key, or does not know the model or the address.
        JudgeError: more than `failed_fraction` of the items, or 20 questions in a row, got none.
        DeadlineError: not all questions were answered within `deadline_seconds`.
    """
    held = _Interview(spec, cache, asked)
    if asked.questions:
        asyncio.run(held.run(dict(asked.questions)))
    return held.failures


class _Interview:
    """All questions of one call, `concurrency` at a time."""

    def __init__(self, spec: EndpointSpec, cache: VerdictCache, asked: Asked) -> None:
        self._spec = spec
        self._cache = cache
        self._asked = asked
        self.failures: dict[str, str] = {}  # key of a question without an answer -> why
        self._reasons: Counter[str] = Counter()
        self._failed: set[int] = set()  # numbers of items; several questions of one may fail
        self._streak = 0
        self._resume_at = 0.0  # no question is sent before this time
        self._ends_at = time.monotonic() + spec.deadline_seconds

    async def run(self, questions: dict[str, str]) -> None:
        """Send questions until all are answered or failed."""
        spec = self._spec
        head = {"Authorization": f"Bearer {spec.key}"} if spec.key else {}
        limits = httpx.Limits(max_connections=spec.concurrency)
        waiting = iter(questions.items())
        # asyncio's timeouts in place of httpx's, which restart with every byte received.
        async with httpx.AsyncClient(headers=head, limits=limits, timeout=None) as http:
            workers = [
                asyncio.create_task(self._work(http, waiting)) for _ in range(spec.concurrency)
            ]
            try:
                async with asyncio.timeout(spec.deadline_seconds):
                    await asyncio.gather(*workers)
            except DeadlineError:  # it is a TimeoutError too
                raise
            except TimeoutError as error:
                raise self._late() from error
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, http: httpx.AsyncClient, waiting: Iterator[tuple[str, str]]) -> None:
        for key, text in waiting:
            try:
                self._cache.put(key, await self._ask(http, key, text))
                self._streak = 0
            except FailedError as failure:
                self.failures[key] = failure.reason
                self._count(key, failure)

    async def _ask(self, http: httpx.AsyncClient, key: str, text: str) -> str:
        failed = FailedError("not asked")
        for attempt in range(self._spec.retries + 1):
            if attempt:
                await asyncio.sleep(self._backoff(key, attempt))
            while (pause := self._resume_at - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            try:
                async with asyncio.timeout(self._spec.request_seconds):
                    answer = await post(http, self._address(), self._body(text))
            except TimeoutError:
                failed = FailedError(f"no answer within {self._spec.request_seconds:g} s")
                continue
            except httpx.InvalidURL as error:
                raise ConfigError(
                    f"the {self._spec.role}'s address is none: {error}",
                    where=f"{self._spec.where}.url={self._spec.url}",
                    fix="write https://HOST/v1 or https://HOST:PORT/v1",
                ) from error
            except TooLongError as error:
                failed = FailedError(str(error))
                continue
            except httpx.RequestError as error:
                failed = FailedError(f"no connection: {type(error).__name__}")
                continue
            if answer.status in RETRIED or answer.status >= 500:
                failed = FailedError(f"HTTP {answer.status}")
                self._hold_back(answer)
                continue
            self._refuse(answer)
            if content_of(answer) is None:
                failed = FailedError("the answer is no chat completion")
                continue
            return self._asked.read(answer)
        raise failed

    def _address(self) -> str:
        return f"{self._spec.url.rstrip('/')}/chat/completions"

    def _body(self, text: str) -> dict[str, object]:
        message = {"role": "user", "content": text}
        return {**json.loads(self._spec.request), "model": self._spec.model, "messages": [message]}

    def _backoff(self, key: str, attempt: int) -> float:
        """Seconds to wait: doubling, and different per question so that retries do not coincide."""
        spread = 0.5 + int(key[:4], 16) / 0x20000
        return spread * min(_MOST_BACKOFF, self._spec.backoff_seconds * 2 ** (attempt - 1))

    def _hold_back(self, answer: Answer) -> None:
        """Delay all questions until the time that the endpoint's answer names."""
        resume_at = time.monotonic() + seconds_of(answer.retry_after, answer.date)
        if resume_at > self._ends_at:
            raise self._late(f"the endpoint asks to wait for {answer.retry_after!r:.40}")
        self._resume_at = max(self._resume_at, resume_at)

    def _refuse(self, answer: Answer) -> None:
        """Raise unless the status is 200: ConfigError if no question can ever succeed."""
        status = answer.status
        if status in (401, 403):
            variable = self._spec.key_variable
            raise ConfigError(
                f"the {self._spec.role}'s endpoint refuses the key (HTTP {status})",
                where=f"environment variable {variable}" if variable else self._spec.where,
                fix=f"set {self._spec.where}.key_variable to a variable that holds a valid key",
            )
        if status == 404:
            raise ConfigError(
                f"the {self._spec.role}'s endpoint knows no model {self._spec.model!r}, or is at "
                "another address (HTTP 404)",
                where=f"{self._spec.where}.url={self._spec.url}",
                fix=f"correct {self._spec.where}.model or {self._spec.where}.url, which ends "
                "before /chat/completions",
            )
        if status != 200:
            raise FailedError(f"HTTP {status}", self._told(answer))

    def _told(self, answer: Answer) -> str:
        """The endpoint's error message, with the key masked if the message repeats it."""
        try:
            text = str(answer.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            return ""
        return f"{text.replace(self._spec.key, '***') if self._spec.key else text:.120}"

    def _count(self, key: str, failure: FailedError) -> None:
        self._reasons[": ".join(filter(None, (failure.reason, failure.words)))] += 1
        self._failed.update(self._asked.uses[key])
        self._streak += 1
        allowed = self._spec.failed_fraction * self._asked.items
        if len(self._failed) <= allowed and self._streak < _STREAK:
            return
        reasons = "; ".join(f"{count} x {text}" for text, count in self._reasons.most_common(3))
        raise JudgeError(
            f"the {self._spec.role} gave no {self._asked.answer} on {len(self._failed)} of "
            f"{self._asked.items} {self._asked.noun}, the last {self._streak} in a row: {reasons}",
            where=f"{self._spec.where}.url={self._spec.url}",
            fix=f"fix the endpoint and run again: {self._asked.answer}s are kept in "
            f"{self._cache.path}; {self._spec.where}.failed_fraction says how many may fail",
        )

    def _late(self, why: str = "") -> DeadlineError:
        seconds = self._spec.deadline_seconds
        return DeadlineError(
            f"the {self._spec.role} did not answer all questions within {seconds:g} s"
            + (f": {why}" if why else ""),
            where=f"{self._spec.where}.url={self._spec.url}",
            fix=f"run again: {self._asked.answer}s are kept in {self._cache.path}; or raise "
            f"{self._spec.where}.deadline_seconds",
        )

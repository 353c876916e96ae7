"""Pairwise verdicts of a chat model at an OpenAI-compatible URL.

Each pair is judged in both orders, because judges favour a position; a preference counts only if
both orders agree on it (L. Zheng et al., "Judging LLM-as-a-judge with MT-Bench and Chatbot Arena",
2023, section 3.4). An answer without a clear verdict is a failure, never a tie.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import httpx

from workers.errors import ConfigError, DeadlineError, JudgeError
from workers.scorers.http_answer import Answer, TooLongError, content_of, post
from workers.scorers.http_calls import RETRIED, seconds_of
from workers.scorers.judge_cache import VerdictCache, question_key

_FORMAT = "1"  # version of the verdicts; changing it invalidates cached ones
_VERDICT = re.compile(r"\[\[([ABC])\]\]")
_PLACE = re.compile(r"\{(prompt|first|second)\}")
_MOST_BACKOFF = 60.0  # seconds
_STREAK = 20  # failures in a row after which the endpoint counts as broken


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """Address, model and limits of a judge."""

    url: str  # without "/chat/completions"
    model: str
    instruction: str  # with {prompt}, {first} and {second}
    request: str  # JSON object merged into every request
    key: str = field(repr=False)  # "" = none; never written or shown
    key_variable: str  # environment variable that held the key, for messages
    concurrency: int
    request_seconds: float
    retries: int
    backoff_seconds: float
    deadline_seconds: float
    failed_fraction: float


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """Two answers to one prompt."""

    prompt: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Judged:
    """Outcomes of pairs, and counts of the questions."""

    outcomes: tuple[float | None, ...]  # 1 = a is better, 0 = b, .5 = tie, None = failed
    asked: int  # questions that the endpoint answered now
    cached: int  # questions answered from the cache
    failed: int  # pairs without an outcome
    order_dependent: int  # ties because the verdict changed with the order


class _FailedError(Exception):
    """One question got no verdict; the message is the reason."""


def judge_pairs(spec: EndpointSpec, cache: VerdictCache, pairs: Sequence[AnswerPair]) -> Judged:
    """Get the verdict on every pair in both orders, from the cache or the endpoint.

    Equal answers are a tie without a question. Every verdict is cached immediately, so a rerun
    after an error sends only the missing questions.

    Raises:
        ConfigError: the endpoint refuses the key, or does not know the model or the address.
        JudgeError: more than `failed_fraction` of the pairs, or 20 questions in a row, got no
            verdict.
        DeadlineError: not all questions were answered within `deadline_seconds`.
    """
    questions: dict[str, str] = {}
    keys: list[tuple[str, str] | None] = []
    for pair in pairs:
        both = (_question(spec, pair.prompt, pair.a, pair.b),
                _question(spec, pair.prompt, pair.b, pair.a))  # fmt: skip
        keys.append((both[0][0], both[1][0]) if pair.a != pair.b else None)
        questions |= dict(both) if pair.a != pair.b else {}
    unknown = {key: text for key, text in questions.items() if cache.get(key) is None}
    if unknown:
        uses: dict[str, list[int]] = {}
        for number, both in enumerate(keys):
            for key in both or ():
                uses.setdefault(key, []).append(number)
        asyncio.run(_Interview(spec, cache, uses, len(pairs)).run(unknown))
    verdicts = [(cache.get(k[0]), cache.get(k[1])) if k else ("C", "C") for k in keys]
    outcomes = tuple(_outcome(*both) for both in verdicts)
    answered = sum(cache.get(key) is not None for key in unknown)
    failed = sum(outcome is None for outcome in outcomes)
    ties = sum(o == 0.5 and v != ("C", "C") for o, v in zip(outcomes, verdicts, strict=True))
    return Judged(outcomes, answered, len(questions) - len(unknown), failed, ties)


def _question(spec: EndpointSpec, prompt: str, first: str, second: str) -> tuple[str, str]:
    """Key and text of a question. Filled in a single pass: texts may contain braces too."""
    texts = {"prompt": prompt, "first": first, "second": second}
    asked = (spec.url.rstrip("/"), spec.model, spec.instruction, spec.request)
    key = question_key(_FORMAT, *asked, prompt, first, second)
    return key, _PLACE.sub(lambda place: texts[place[1]], spec.instruction)


def _outcome(forward: str | None, swapped: str | None) -> float | None:
    if forward is None or swapped is None:
        return None
    return {("A", "B"): 1.0, ("B", "A"): 0.0}.get((forward, swapped), 0.5)


class _Interview:
    """All questions of one evaluation, `concurrency` at a time."""

    def __init__(
        self, spec: EndpointSpec, cache: VerdictCache, uses: dict[str, list[int]], pairs: int
    ) -> None:
        self._spec = spec
        self._cache = cache
        self._uses = uses  # numbers of the pairs that need each question
        self._pairs = pairs
        self._reasons: Counter[str] = Counter()
        self._failed: set[int] = set()  # numbers of pairs; both questions of one may fail
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
            except _FailedError as failure:
                self._count(key, str(failure))

    async def _ask(self, http: httpx.AsyncClient, key: str, text: str) -> str:
        reason = ""
        for attempt in range(self._spec.retries + 1):
            if attempt:
                await asyncio.sleep(self._backoff(key, attempt))
            while (pause := self._resume_at - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            try:
                async with asyncio.timeout(self._spec.request_seconds):
                    answer = await post(http, self._address(), self._body(text))
            except TimeoutError:
                reason = f"no answer within {self._spec.request_seconds:g} s"
                continue
            except httpx.InvalidURL as error:
                raise ConfigError(
                    f"the judge's address is none: {error}",
                    where=f"evaluate.endpoint.url={self._spec.url}",
                    fix="write https://HOST/v1 or https://HOST:PORT/v1",
                ) from error
            except TooLongError as error:
                reason = str(error)
                continue
            except httpx.RequestError as error:
                reason = f"no connection: {type(error).__name__}"
                continue
            if answer.status in RETRIED or answer.status >= 500:
                reason = f"HTTP {answer.status}"
                self._hold_back(answer)
                continue
            self._refuse(answer)
            content = content_of(answer)
            if content is None:
                reason = "the answer is no chat completion"
                continue
            return _verdict(content)
        raise _FailedError(reason)

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
                f"the judge's endpoint refuses the key (HTTP {status})",
                where=f"environment variable {variable}" if variable else "evaluate.endpoint",
                fix="set evaluate.endpoint.key_variable to a variable that holds a valid key",
            )
        if status == 404:
            raise ConfigError(
                f"the judge's endpoint knows no model {self._spec.model!r}, or is at another "
                "address (HTTP 404)",
                where=f"evaluate.endpoint.url={self._spec.url}",
                fix="correct evaluate.endpoint.model or evaluate.endpoint.url, which ends "
                "before /chat/completions",
            )
        if status != 200:
            raise _FailedError(f"HTTP {status}{self._told(answer)}")

    def _told(self, answer: Answer) -> str:
        """The endpoint's error message, with the key masked if the message repeats it."""
        try:
            text = str(answer.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            return ""
        return f": {text.replace(self._spec.key, '***') if self._spec.key else text:.120}"

    def _count(self, key: str, reason: str) -> None:
        self._reasons[reason] += 1
        self._failed.update(self._uses[key])
        self._streak += 1
        allowed = self._spec.failed_fraction * self._pairs
        if len(self._failed) <= allowed and self._streak < _STREAK:
            return
        reasons = "; ".join(f"{count} x {text}" for text, count in self._reasons.most_common(3))
        raise JudgeError(
            f"the judge gave no verdict on {len(self._failed)} of {self._pairs} pairs, the last "
            f"{self._streak} in a row: {reasons}",
            where=f"evaluate.endpoint.url={self._spec.url}",
            fix=f"fix the endpoint and run again: verdicts are kept in {self._cache.path}; "
            "evaluate.endpoint.failed_fraction says how many may fail",
        )

    def _late(self, why: str = "") -> DeadlineError:
        seconds = self._spec.deadline_seconds
        return DeadlineError(
            f"the judge did not answer all questions within {seconds:g} s"
            + (f": {why}" if why else ""),
            where=f"evaluate.endpoint.url={self._spec.url}",
            fix=f"run again: verdicts are kept in {self._cache.path}; or raise "
            "evaluate.endpoint.deadline_seconds",
        )


def _verdict(content: str) -> str:
    found = set(_VERDICT.findall(content))
    if len(found) != 1:
        raise _FailedError("several verdicts in one answer" if found else "an answer without one")
    return found.pop()

"""Rewards of a chat model at an OpenAI-compatible URL, by a rubric; verdicts are kept."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np

from workers.data.rows.asked import plain_text
from workers.errors import ConfigError
from workers.records.specs import RewardSpec
from workers.scorers.http_address import check_address
from workers.scorers.http_answer import content_of
from workers.scorers.http_calls import FailedError, Patient, Server
from workers.scorers.judge_cache import VerdictCache, question_key
from workers.scorers.rubric import (
    HELPFUL,
    VERDICTS,
    Question,
    comparison_question,
    comparison_reward,
    position_bias,
    rating_question,
    rating_reward,
    verdict_in,
)
from workers.scorers.source import Batch, Needs, RewardSource, Scored, Scorer
from workers.user_functions.reward_function import Exchange

_log = logging.getLogger(__name__)

_NAME = "judge"
_FORMAT = "reward 1"  # version of the questions; changing it invalidates kept verdicts
_MOST_RUBRIC = 100_000  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Patient):
    """Keys of the source, or of a term."""

    url: str  # without /chat/completions
    model: str
    rubric: str = ""  # path of a text with the criteria; "" = general helpfulness
    compare: Literal["none", "reference"] = "none"  # rate alone, or against the column's answer
    column: str = ""  # of the prompt's row: the reference answer
    request: str = '{"temperature": 0}'  # JSON object merged into every request
    cache: str = ""  # folder of kept verdicts; "" = verdicts of this process alone
    key_variable: str = ""

    def check(self, key: str) -> None:
        """Check the address, the rubric, the column and what is sent."""
        check_address(self.url, "the judge's", f"{key}.url", "https://HOST/v1")
        self.limits.check(key)
        if not self.model:
            raise ConfigError("no judging model is named", where=f"{key}.model", fix="name it")
        if (self.compare == "reference") != bool(self.column):
            raise ConfigError(
                f"compare={self.compare} and column={self.column!r}",
                where=f"{key}.column",
                fix="compare=reference needs the column of the reference answer, none takes none",
            )
        if not isinstance(_parsed(self.request), dict):
            raise ConfigError(
                "what is sent with every question is no JSON object",
                where=f"{key}.request",
                fix="write '{}' to send nothing",
            )
        _read_rubric(self.rubric, f"{key}.rubric")


def _needs(settings: Settings) -> Needs:
    return Needs(
        secrets=(settings.key_variable,) if settings.key_variable else (),
        seconds=settings.deadline_seconds,
        seconds_where="deadline_seconds",
        columns=(settings.column,) if settings.column else (),
        waits=True,
    )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read_rubric(path: str, where: str) -> str:
    if not path:
        return HELPFUL
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the rubric cannot be read: {error}", where=f"{where}={path}", fix="name a text file"
        ) from error
    if not 0 < len(text) <= _MOST_RUBRIC:
        raise ConfigError(
            f"the rubric has {len(text):,} characters", where=f"{where}={path}",
            fix=f"write the criteria in 1 to {_MOST_RUBRIC:,}",
        )  # fmt: skip
    return text


def _make(settings: Settings, spec: RewardSpec) -> Scorer:
    rubric = _read_rubric(settings.rubric, "rubric")
    key = spec.secrets[settings.key_variable] if settings.key_variable else ""
    known = _Known(settings, spec.folder)

    def score(batch: Batch) -> Scored:
        asked = [_questions(settings, rubric, each) for each in batch.texts]
        known.learn(Server(f"{settings.url.rstrip('/')}/chat/completions", settings.limits, key),
                    [question for each in asked for question in each])  # fmt: skip
        values, reasons, words = [], [], []
        for questions in asked:
            value, reason, said = known.reward(questions)
            values.append(value)
            reasons.append(f"{_NAME}: {reason}" if reason else "")
            words.append(said)
        if settings.compare == "reference":
            known.tell_bias(asked)
        return Scored(np.array(values, np.float32), reasons, words)

    return score


def _questions(settings: Settings, rubric: str, each: Exchange) -> tuple[Question, ...]:
    """The questions about a response; none if its row has no reference answer."""
    prompt = plain_text(each.asked.context)
    if settings.compare == "none":
        return (rating_question(rubric, prompt, each.response),)
    reference = each.asked.columns().get(settings.column)
    if not isinstance(reference, str) or not reference.strip():
        return ()
    return (
        comparison_question(rubric, prompt, each.response, reference),
        comparison_question(rubric, prompt, reference, each.response),
    )


class _Known:
    """Verdicts by question: those of this process, and those kept in a folder."""

    def __init__(self, settings: Settings, folder: str) -> None:
        self._settings = settings
        self._verdicts: dict[str, str] = {}
        self._failed: dict[str, FailedError] = {}
        place = Path(folder, settings.cache) if settings.cache else None
        self._cache = VerdictCache(place, VERDICTS, "cache") if place is not None else None

    def learn(self, server: Server, questions: Sequence[Question]) -> None:
        """Ask the questions whose verdict is not known, each once."""
        unknown = {
            key: question
            for question in questions
            if self._verdict(key := self._key(question)) is None
        }
        self._failed.clear()
        if not unknown:
            return
        late = FailedError(f"no answer within {self._settings.deadline_seconds:g} s in all")
        jobs = [
            lambda http, q=question: self._ask(server, http, q) for question in unknown.values()
        ]
        for key, found in zip(unknown, server.gather(jobs, lambda: late), strict=True):
            if isinstance(found, FailedError):
                self._failed[key] = found
                continue
            self._verdicts[key] = found
            if self._cache is not None:
                self._cache.put(key, found)

    async def _ask(
        self, server: Server, http: httpx.AsyncClient, question: Question
    ) -> str | FailedError:
        message = {"role": "user", "content": question.text}
        given: dict[str, Any] = json.loads(self._settings.request)
        body = {**given, "model": self._settings.model, "messages": [message]}
        try:
            content = content_of(await server.ask(http, body))
        except FailedError as error:
            return error
        if content is None:
            return FailedError("the answer is no chat completion")
        verdict = verdict_in(content, question.accepts)
        return verdict or FailedError("an answer without one clear verdict", content[-100:])

    def reward(self, questions: Sequence[Question]) -> tuple[float, str, str]:
        """The reward, or the reason and details of why there is none."""
        if not questions:
            return math.nan, "the prompt's row has no reference answer", ""
        keys = [self._key(question) for question in questions]
        verdicts = [self._verdict(key) for key in keys]
        for key, verdict in zip(keys, verdicts, strict=True):
            if verdict is None:
                failed = self._failed[key]
                return math.nan, failed.reason, failed.words
        found = [verdict for verdict in verdicts if verdict is not None]
        if self._settings.compare == "none":
            return rating_reward(found[0]), "", ""
        return comparison_reward(*found), "", ""

    def tell_bias(self, asked: Sequence[Sequence[Question]]) -> None:
        """Log how often the order decided in these pairs."""
        both = [[self._verdict(self._key(q)) for q in questions] for questions in asked]
        pairs = [(a, b) for a, b in (v for v in both if len(v) == 2) if a and b]
        bias = position_bias(pairs)
        if bias is not None:
            _log.warning(
                "the judge decided %.1f %% of %d pairs by their order (95 %% interval %.1f to "
                "%.1f); both orders are asked, so rewards are free of it",
                100 * bias.share, bias.pairs, 100 * bias.low, 100 * bias.high,
            )  # fmt: skip

    def _key(self, question: Question) -> str:
        settings = self._settings
        return question_key(
            _FORMAT, settings.url.rstrip("/"), settings.model, settings.request, question.text
        )

    def _verdict(self, key: str) -> str | None:
        found = self._verdicts.get(key)
        return found if found is not None or self._cache is None else self._cache.get(key)


SOURCE = RewardSource(Settings, _make, _needs)

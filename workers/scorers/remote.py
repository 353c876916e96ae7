"""Rewards of a server: its own protocol, or the one of OpenRLHF's remote reward servers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import httpx
import numpy as np

from workers.data.rows.asked import as_messages, plain_text
from workers.data.rows.examples import Context
from workers.errors import ConfigError
from workers.records.specs import RewardSpec
from workers.scorers.http_address import check_address
from workers.scorers.http_calls import FailedError, Patient, Server
from workers.scorers.source import Batch, Needs, RewardSource, Scored, Scorer
from workers.user_functions.reward_function import Exchange

_NAME = "remote reward"
_LARGEST = float(np.finfo(np.float32).max)
# Statuses that one sequence of a request may have caused: then each is sent alone.
_BY_ONE = ("HTTP 400", "HTTP 413", "HTTP 422", "HTTP 500")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Patient):
    """Keys of the source, or of a term."""

    url: str
    protocol: Literal["plain", "openrlhf"] = "plain"
    columns: list[str] = field(default_factory=list)  # of the prompt's row, which are sent
    label: str = ""  # openrlhf: the column that is sent as the label
    key_variable: str = ""  # environment variable that holds the bearer key; "" = no key
    batch: int = 8  # sequences of one request

    def check(self, key: str) -> None:
        """Check the address and the limits."""
        check_address(self.url, "the reward server's", f"{key}.url", "https://HOST:PORT/PATH")
        self.limits.check(key)
        if not 1 <= self.batch <= 10_000:
            raise ConfigError(f"batch={self.batch}", where=f"{key}.batch", fix="give 1 to 10,000")
        if self.label and self.protocol != "openrlhf":
            raise ConfigError(
                "label is sent by the protocol openrlhf alone",
                where=f"{key}.label",
                fix="name the column in columns",
            )


def _needs(settings: Settings) -> Needs:
    label = (settings.label,) if settings.label else ()
    return Needs(
        secrets=(settings.key_variable,) if settings.key_variable else (),
        seconds=settings.deadline_seconds,
        seconds_where="deadline_seconds",
        columns=(*settings.columns, *label),
        waits=True,
    )


def _make(settings: Settings, spec: RewardSpec) -> Scorer:
    key = spec.secrets[settings.key_variable] if settings.key_variable else ""

    def score(batch: Batch) -> Scored:
        found = _Asking(settings, key, steps=bool(spec.step_separator)).scores(batch.texts)
        return Scored(
            np.array([each.value for each in found], np.float32),
            [f"{_NAME}: {each.reason}" if each.reason else "" for each in found],
            [each.words for each in found],
            [each.steps for each in found],
        )

    return score


@dataclass(frozen=True, slots=True)
class Found:
    """The score of one sequence, or why there is none."""

    value: float = math.nan
    reason: str = ""
    words: str = ""
    steps: tuple[float, ...] = ()  # parts of the value, one per step; () = one number


class _Asking:
    """One call of the scorer."""

    def __init__(self, settings: Settings, key: str, *, steps: bool = False) -> None:
        self._settings, self._key, self._steps = settings, key, steps
        self._server = Server(settings.url, settings.limits, key)

    def scores(self, texts: Sequence[Exchange]) -> list[Found]:
        """One score or failure per sequence, in order."""
        size = self._settings.batch
        parts = [texts[at : at + size] for at in range(0, len(texts), size)]
        late = Found(reason=f"no answer within {self._settings.deadline_seconds:g} s in all")
        jobs = [lambda http, part=part: self._part(http, part) for part in parts]
        found = self._server.gather(jobs, lambda: [late])
        whole = zip(parts, found, strict=True)
        return [
            each
            for part, own in whole
            for each in (own if len(own) == len(part) else own * len(part))
        ]

    async def _part(self, http: httpx.AsyncClient, part: Sequence[Exchange]) -> list[Found]:
        try:
            return await self._asked(http, part)
        except FailedError as error:
            if len(part) == 1 or error.reason not in _BY_ONE:
                return [Found(reason=error.reason, words=error.words)] * len(part)
        found: list[Found] = []
        for each in part:
            try:
                found += await self._asked(http, [each])
            except FailedError as error:
                found.append(Found(reason=error.reason, words=error.words))
        return found

    async def _asked(self, http: httpx.AsyncClient, part: Sequence[Exchange]) -> list[Found]:
        settings = self._settings
        answer = await self._server.ask(http, body_of(settings, part))
        try:
            read = answer.json()
        except ValueError:
            return [Found(reason="the answer is no JSON")] * len(part)
        name = "scores" if settings.protocol == "plain" else "rewards"
        return read_scores(read, name, len(part), self._key, steps=self._steps)


def body_of(settings: Settings, part: Sequence[Exchange]) -> dict[str, Any]:
    """The JSON body of a request."""
    columns = [each.asked.columns() for each in part]
    if settings.protocol == "openrlhf":
        return {
            "query": [f"{each.asked.rendered}{each.whole}" for each in part],
            "prompts": [each.asked.rendered for each in part],
            "labels": [row.get(settings.label) if settings.label else None for row in columns],
        }
    return {
        "prompts": [plain_text(each.asked.context) for each in part],
        "responses": [each.response for each in part],
        "messages": [_dialogue(each.asked.context) for each in part],
        "finished": [each.finished for each in part],
        "rows": [{name: row.get(name) for name in settings.columns} for row in columns],
        **({"turns": [each.dialogue for each in part]} if any(e.turns for e in part) else {}),
    }


def _dialogue(context: Context) -> list[dict[str, str]] | None:
    """The turns of a dialogue; None for bare text, which no chat template was applied to."""
    return None if isinstance(context, str) else as_messages(context)


def read_scores(
    read: Any, name: str, count: int, key: str = "", *, steps: bool = False
) -> list[Found]:
    """The scores of an answer, strictly: exactly one number per sequence, or an error for one.

    With `steps` a sequence may have a list of numbers, one per step.
    """
    values = read.get(name) if isinstance(read, dict) else None
    if not isinstance(values, list):
        return [Found(reason=f"the answer holds no list {name!r}")] * count
    if len(values) != count:
        words = f"{len(values)} for {count}"
        return [Found(reason="the answer has another number of scores", words=words)] * count
    return [_one(value, key, steps=steps) for value in values]


def _one(value: Any, key: str, *, steps: bool = False) -> Found:
    if isinstance(value, dict) and value.keys() == {"error"} and isinstance(value["error"], str):
        words = value["error"].replace(key, "***") if key else value["error"]
        return Found(reason="the server refuses the sequence", words=words[:200])
    if isinstance(value, dict) and value.keys() == {"score"}:
        value = value["score"]
    if steps and isinstance(value, list) and value:
        parts = [_one(each, key) for each in value]
        failed = next((part for part in parts if part.reason), None)
        total = Found() if failed else _one(math.fsum(part.value for part in parts), key)
        return failed or replace(total, steps=tuple(part.value for part in parts))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Found(reason="a score is no number", words=type(value).__name__)
    if not math.isfinite(value) or abs(value) > _LARGEST:
        return Found(reason="a score is not finite")
    return Found(float(value))


SOURCE = RewardSource(Settings, _make, _needs)

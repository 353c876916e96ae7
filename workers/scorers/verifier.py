"""Rewards by rules: a verifier compares each response with a column of its prompt's row."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from workers.data.rows.asked import Asked
from workers.errors import ConfigError
from workers.records.specs import RewardSpec
from workers.scorers.source import Batch, Needs, RewardSource, Scored, Scorer
from workers.user_functions.calls import Patience
from workers.user_functions.reward_function import Exchange, start_reward
from workers.verifiers.verifier import KIND, Check, Options, UnverifiableError, Verifier, make_check

_NAME = "verifier"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Keys of the source, or of a term."""

    verifier: str
    function_seconds: float
    function_retries: int
    column: str = ""  # of the prompt's row: the answer; data.keep_columns must keep it
    pattern: str = ""
    schema: str = ""
    tolerance: float = 0.0
    right: float = 1.0
    wrong: float = 0.0

    @property
    def options(self) -> Options:
        """What the verifier itself reads."""
        return Options(self.pattern, self.schema, self.tolerance)

    @property
    def patience(self) -> Patience:
        """Deadline of a verifier that runs in a process of its own."""
        return Patience(self.function_seconds, self.function_retries)

    def check(self, key: str) -> None:
        """Check that there is such a verifier, and that it can use its options."""
        verifier = KIND.find(self.verifier, f"{key}.verifier")
        if verifier.reference and not self.column:
            raise ConfigError(
                f"the verifier {self.verifier} compares with an answer, and no column holds it",
                where=f"{key}.column",
                fix="name a column of the prompt files, and keep it by data.keep_columns",
            )
        if not 0.0 <= self.tolerance < 1.0:
            raise ConfigError(
                f"tolerance={self.tolerance:g} is no relative difference",
                where=f"{key}.tolerance",
                fix="give a number from 0 to below 1",
            )
        for name in ("right", "wrong"):
            if not math.isfinite(value := getattr(self, name)):
                raise ConfigError(
                    f"{name}={value:g}", where=f"{key}.{name}", fix="give a finite number"
                )
        try:
            make_check(verifier, self.options, lambda name: f"{key}.{name}")
        except ConfigError as error:
            at = error.where if error.where.startswith(key) else f"{key}.{error.where}"
            raise ConfigError(error.what, where=at, fix=error.fix) from error


def _needs(settings: Settings) -> Needs:
    apart = KIND.find(settings.verifier, "verifier").apart
    return Needs(
        columns=(settings.column,) if settings.column else (),
        seconds=settings.patience.most_seconds if apart else 0.0,
        seconds_where="reward.function_seconds",
    )


def _make(settings: Settings, spec: RewardSpec) -> Scorer:
    verifier = KIND.find(settings.verifier, "verifier", spec.folder)
    check = make_check(verifier, settings.options, str)
    found = _apart(verifier, settings, spec) if verifier.apart else _here(check, settings.column)

    def score(batch: Batch) -> Scored:
        outcomes = found(batch.texts)
        values = [
            math.nan if isinstance(o, str) else settings.right if o else settings.wrong
            for o in outcomes
        ]
        reasons = [f"{_NAME} {settings.verifier}: {o}" if isinstance(o, str) else ""
                   for o in outcomes]  # fmt: skip
        return Scored(np.array(values, np.float32), reasons)

    return score


# Per response whether it is right, or the reason why that cannot be told.
_Judge = Callable[[Sequence[Exchange]], list[bool | str]]


def _here(check: Check, column: str) -> _Judge:
    return lambda exchanges: [outcome_of(check, each, column) for each in exchanges]


def outcome_of(check: Check, exchange: Exchange, column: str) -> bool | str:
    """Whether a response is right, or the reason why that cannot be told."""
    row = exchange.asked.columns()
    if column and column not in row:
        return f"the prompt's row has no column {column!r}"
    try:
        return check(exchange.response, row[column] if column else None)
    except UnverifiableError as error:
        return str(error)


def _apart(verifier: Verifier, settings: Settings, spec: RewardSpec) -> _Judge:
    function = start_reward(verifier.apart, spec.folder)

    def judge(exchanges: Sequence[Exchange]) -> list[bool | str]:
        asked = [_with_answer(each, settings.column) for each in exchanges]
        replies = function.ask(asked, settings.patience)
        return [reply.reason or reply.value > 0.5 for reply in replies]

    return judge


def _with_answer(exchange: Exchange, column: str) -> Exchange:
    answer: Any = exchange.asked.columns().get(column)
    row = json.dumps({"answer": answer})
    return replace(exchange, asked=replace(exchange.asked, row=row))


def _refuses(settings: Settings, asked: Sequence[Asked]) -> list[str]:
    """Why the answer in each prompt's row cannot be compared with; tried on an empty response."""
    verifier = KIND.find(settings.verifier, "verifier")
    if verifier.apart:
        return [""] * len(asked)
    check = make_check(verifier, settings.options, str)
    found = [
        outcome_of(check, Exchange(each, "", finished=True), settings.column) for each in asked
    ]
    return [each if isinstance(each, str) else "" for each in found]


SOURCE = RewardSource(Settings, _make, _needs, _refuses)

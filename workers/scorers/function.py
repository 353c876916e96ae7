"""Rewards of a user's Python function, which runs in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workers.errors import ConfigError
from workers.process.user_code import split_path
from workers.records.specs import RewardSpec
from workers.scorers.source import Batch, Code, Needs, RewardSource, Scored, Scorer
from workers.user_functions.calls import Patience
from workers.user_functions.reward_function import WHERE, start_reward


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Keys of `reward` that it reads."""

    function: str
    function_seconds: float
    function_retries: int

    @property
    def patience(self) -> Patience:
        """Deadline and retries of its calls."""
        return Patience(self.function_seconds, self.function_retries)

    def check(self, key: str) -> None:
        """Check that a function is named, and its patience."""
        split_path(self.function, WHERE)
        if self.function_seconds < 0 or self.function_retries < 0:
            raise ConfigError(
                f"function_seconds={self.function_seconds:g} and "
                f"function_retries={self.function_retries} must be at least 0",
                where=key,
                fix="function_seconds=0 sets no deadline",
            )


def _needs(settings: Settings) -> Needs:
    loader = "workers.user_functions.reward_function:load_reward"
    return Needs(
        seconds=settings.patience.most_seconds,
        seconds_where="reward.function_seconds",
        code=(Code(settings.function, WHERE, loader),),
    )


def _make(settings: Settings, spec: RewardSpec) -> Scorer:
    function = start_reward(settings.function, spec.folder, steps=bool(spec.step_separator))

    def score(batch: Batch) -> Scored:
        replies = function.ask(batch.texts, settings.patience)
        return Scored(
            np.array([reply.value for reply in replies], np.float32),
            [reply.reason for reply in replies],
            [reply.words for reply in replies],
            [reply.steps for reply in replies],
        )

    return score


SOURCE = RewardSource(Settings, _make, _needs)

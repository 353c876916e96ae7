"""Rewards of the run's environment: the sum over the turns of a sequence."""

from __future__ import annotations

from dataclasses import dataclass

from workers.errors import RewardError
from workers.records.specs import RewardSpec
from workers.scorers.source import WHERE, Batch, Needs, RewardSource, Scored, Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """It has none."""


def _make(_: Settings, __: RewardSpec) -> Scorer:
    def score(batch: Batch) -> Scored:
        earned = batch.rollouts.earned
        if earned is None:
            raise RewardError(
                "these sequences were sampled without an environment",
                where=WHERE,
                fix="give the stage an environment, or another reward",
            )
        return Scored(earned, [""] * len(earned))

    return score


SOURCE = RewardSource(Settings, _make, lambda _: Needs(text=False))

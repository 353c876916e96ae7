"""From raw scores to those that PPO trains on: cut responses lose, failed ones are dropped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.checkpoints import model_folder
from orchestrator.config.schema import Config
from orchestrator.config.training import RewardKind
from orchestrator.session.session import Session
from orchestrator.stages.ppo.ledger import Ledger
from workers.errors import RewardError
from workers.records.arrays import IntArray
from workers.records.generation import Finish
from workers.records.training import Scores
from workers.training.experience import told

_LOST_IN_A_ROW = 3  # iterations without a single reward that end the run


def deviation_of(scores: Scores) -> float | None:
    """Standard deviation of the scores that there are; None where no two differ."""
    ok = np.array([not failure for failure in scores.failures], bool)
    deviation = float(np.std(scores.values[ok], dtype=np.float64)) if ok.any() else 0.0
    return deviation or None


def deduct_cut(scores: Scores, finish: IntArray, penalty: float) -> Scores:
    """Scores less `penalty` where the response did not end by itself.

    A deduction and no fixed score: whatever the reward says of a response, it says less of the same
    response if that was cut.

    Args:
        scores: (B,) of the reward.
        finish: (B,) why each response ended.
        penalty: At least 0, reward units.
    """
    if not penalty:
        return scores
    with np.errstate(over="ignore"):
        lower = scores.values - np.float32(penalty)
    lower = np.maximum(lower, np.finfo(np.float32).min)  # a reward is finite
    return replace(scores, values=np.where(finish == Finish.STOP, scores.values, lower))


@dataclass(slots=True)
class Scoring:
    """What one PPO stage knows of its reward; saved with the run."""

    config: Config
    ledger: Ledger
    # of the reward model's scores of answers of the SFT model, reward units; None = not known yet
    deviation: float | None = None
    lost: int = 0  # iterations in a row without a single reward
    shown: set[str] = field(default_factory=set)  # reasons of failures that people were told

    @classmethod
    def of(cls, config: Config, ledger: Ledger, reward_model: str) -> Scoring:
        """At the start of a stage; `reward_model` is "" where a function rewards."""
        known = model_folder.facts(Path(reward_model)) if reward_model else {}
        found = known.get(model_folder.SCORE_DEVIATION)
        usable = isinstance(found, float) and 0.0 < found < float("inf")
        return cls(config, ledger, found if usable else None)

    def penalty(self) -> float:
        """What a cut response loses, reward units."""
        if self.config.reward.kind is RewardKind.function:
            return self.config.reward.function_missing_eos_penalty
        return (self.config.algorithm.missing_eos_penalty or 0.0) * (self.deviation or 0.0)

    def shape(self, scores: Scores, finish: IntArray) -> Scores:
        """Deduct what cut responses lose.

        A reward model whose folder does not say how far its scores spread is measured once, on the
        first responses: those of the model that PPO starts from.
        """
        if self.deviation is None:
            self.deviation = deviation_of(scores)
        return deduct_cut(scores, finish, self.penalty())

    def keep(self, session: Session, scores: Scores) -> IntArray:
        """Record failed rewards as drops, and return the ids that are left, sorted.

        Sorted, because engines answer in shards, and minibatches must not depend on who served
        what.

        Raises:
            RewardError: this is one iteration too many in a row without a single reward.
        """
        reasons: dict[str, list[int]] = defaultdict(list)
        for i, failure in zip(scores.ids.tolist(), scores.failures, strict=True):
            if failure:
                reasons[failure].append(i)
        for reason, ids in reasons.items():
            self.ledger.dropped(np.array(ids), reason)
        self._tell(session, scores)
        kept = np.sort(scores.ids[[not failure for failure in scores.failures]])
        self.lost = 0 if len(kept) else self.lost + 1
        if self.lost:
            session.live.note("no response of this step has a reward: no weight changes")
        if self.lost == _LOST_IN_A_ROW:
            raise RewardError(
                f"not one reward could be computed in {self.lost} iterations in a row, the last "
                f"of {len(scores.ids)} responses; first: {told(scores)[0]}",
                where=str(session.position),
                fix="test the reward on the texts in samples/ before a run",
            )
        return kept

    def _tell(self, session: Session, scores: Scores) -> None:
        """Show each reason once, with the words of the first response that it met."""
        failures = [failure for failure in scores.failures if failure]
        for failure, said in zip(failures, told(scores), strict=True):
            if failure not in self.shown:
                self.shown.add(failure)
                count = failures.count(failure)
                session.live.note(f"{count} of {len(scores.ids)} responses dropped: {said}")

    def state(self) -> dict[str, Any]:
        """As plain values."""
        return {"deviation": self.deviation, "lost": self.lost}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.deviation, self.lost = state["deviation"], state["lost"]

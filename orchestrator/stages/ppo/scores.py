"""Raw scores to PPO scores: deduct a penalty for cut responses, drop failed ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.checkpoints import model_folder
from orchestrator.config.reward import Combine
from orchestrator.config.schema import Config
from orchestrator.config.training import OverlongConfig
from orchestrator.session.session import Session
from orchestrator.stages.ppo.ledger import Ledger
from workers.errors import RewardError
from workers.records.arrays import IntArray
from workers.records.gather import told
from workers.records.generation import Finish
from workers.records.training import Scores

_LOST_IN_A_ROW = 3  # consecutive iterations without any reward that end the run


def deviation_of(scores: Scores) -> float | None:
    """Standard deviation of the scores that did not fail; None if no two differ."""
    ok = np.array([not failure for failure in scores.failures], bool)
    deviation = float(np.std(scores.values[ok], dtype=np.float64)) if ok.any() else 0.0
    return deviation or None


def deduct_cut(scores: Scores, finish: IntArray, penalty: float) -> Scores:
    """Deduct `penalty` from the scores of responses that did not end with the end token.

    It is a deduction and not a fixed score, so that any response scores less if it was cut than if
    it was not.

    Args:
        scores: (B,) of the reward.
        finish: (B,) why each response ended.
        penalty: At least 0, reward units.
    """
    return deduct(scores, np.where(finish == Finish.STOP, 0.0, penalty)) if penalty else scores


def deduct(scores: Scores, penalties: NDArray[np.float64]) -> Scores:
    """Deduct (B,) penalties, at least 0, reward units; the scores stay finite."""
    with np.errstate(over="ignore"):
        lower = scores.values - penalties.astype(np.float32)
    lower = np.maximum(lower, np.finfo(np.float32).min)
    return replace(scores, values=np.where(penalties > 0, lower, scores.values))


def long_penalties(lengths: IntArray, limit: int, overlong: OverlongConfig) -> NDArray[np.float64]:
    """Penalties of responses by length (DAPO, arXiv 2503.14476, equation 13).

    0 up to `limit - buffer_tokens` tokens, then linear up to `penalty` at the limit.

    Args:
        lengths: (B,) response tokens.
        limit: Most tokens of a response.
        overlong: Buffer and penalty.

    Returns:
        (B,) reward units, at least 0.
    """
    beyond = lengths - (limit - overlong.buffer_tokens)
    return overlong.penalty * np.clip(beyond / overlong.buffer_tokens, 0.0, 1.0)


@dataclass(slots=True)
class Scoring:
    """A PPO stage's state about its reward; saved with the run."""

    config: Config
    ledger: Ledger
    # Of the reward model's scores of the SFT model's responses, reward units; None = not known yet.
    deviation: float | None = None
    lost: int = 0  # consecutive iterations without any reward
    shown: set[str] = field(default_factory=set)  # failure reasons that were already shown

    @classmethod
    def of(cls, config: Config, ledger: Ledger, reward_model: str) -> Scoring:
        """State at the start of a stage; `reward_model` is "" if the reward needs none."""
        known = model_folder.facts(Path(reward_model)) if reward_model else {}
        found = known.get(model_folder.SCORE_DEVIATION)
        usable = isinstance(found, float) and 0.0 < found < float("inf")
        return cls(config, ledger, found if usable else None)

    def penalty(self) -> float:
        """Penalty of a cut response, reward units; 0 where that of long responses replaces it."""
        if self.config.algorithm.overlong.buffer_tokens:
            return 0.0
        reward = self.config.reward
        if not reward.needs.model:
            return reward.function_missing_eos_penalty
        (weight,) = [abs(term.weight) for term in reward.each if term.needs().model]
        spread = 1.0 if reward.combine is Combine.normalised else self.deviation or 0.0
        return weight * (self.config.algorithm.missing_eos_penalty or 0.0) * spread

    def shape(self, scores: Scores, finish: IntArray, lengths: IntArray) -> Scores:
        """Deduct the penalty for cut responses, or that for long ones.

        If the reward model's folder does not record the standard deviation of its scores, it is
        measured once, on the first responses, which the initial policy sampled.
        """
        if self.deviation is None:
            self.deviation = deviation_of(self._of_model(scores))
        return self._deduct_long(deduct_cut(scores, finish, self.penalty()), lengths)

    def _of_model(self, scores: Scores) -> Scores:
        """The scores of the term that is the reward model, if the reward has terms and one is."""
        terms = [term for term in self.config.reward.each if term.weight]
        names = [term.name for term in terms if term.needs().model]
        if scores.terms is None or not names:
            return scores
        return replace(scores, values=scores.terms.of(names[0]))

    def _deduct_long(self, scores: Scores, lengths: IntArray) -> Scores:
        overlong = self.config.algorithm.overlong
        if not overlong.buffer_tokens:
            return scores
        limit = self.config.rollout.max_response_tokens
        return deduct(scores, long_penalties(lengths, limit, overlong))

    def keep(self, session: Session, scores: Scores) -> IntArray:
        """Record failed rewards as drops, and return the remaining ids, sorted.

        Sorted, because engines return shards, and minibatches must not depend on which engine
        served which sequence.

        Raises:
            RewardError: too many consecutive iterations had no reward at all.
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
                f"no reward could be computed in {self.lost} consecutive iterations, the last "
                f"of {len(scores.ids)} responses; first: {told(scores)[0]}",
                where=str(session.position),
                fix="test the reward on the texts in samples/ before a run",
            )
        return kept

    def _tell(self, session: Session, scores: Scores) -> None:
        """Show each failure reason once, with the message of the first response that had it."""
        failures = [failure for failure in scores.failures if failure]
        for failure, said in zip(failures, told(scores), strict=True):
            if failure not in self.shown:
                self.shown.add(failure)
                count = failures.count(failure)
                session.live.note(f"{count} of {len(scores.ids)} responses dropped: {said}")

    def state(self) -> dict[str, Any]:
        """State as plain values."""
        return {"deviation": self.deviation, "lost": self.lost}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a saved `state`."""
        self.deviation, self.lost = state["deviation"], state["lost"]

"""Answers to held-out prompts while a policy learns: their scores, and what a judge prefers.

The gold labeler scores them if there is one, else the reward of the run does, without any penalty.
A judge compares them with the answers that the same prompts got before the first update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.config.run import StageName
from orchestrator.planning.stage_graph import is_rewarded
from orchestrator.planning.worker_specs import judge_spec, reward_spec
from orchestrator.session.conversations import sampled_answers
from orchestrator.session.session import Session
from orchestrator.stages.judging import all_scored, preferred
from orchestrator.telemetry.live import headline
from workers.data.records import Prompt
from workers.errors import DeadlineError, JudgeError
from workers.records.combining import scored_by_term
from workers.records.gather import told
from workers.records.generation import Finish, RolloutBatch

HEADLINES = ("gold_mean", "heldout_score_mean", "heldout_preferred")


class Heldout:
    """Measures the weights that the engines serve, on the same prompts every time."""

    def __init__(self, session: Session, kind: StageName) -> None:
        """Prepare to measure.

        Args:
            session: The run.
            kind: The stage, whose name in the run names the seeds of sampling.
        """
        self._session, self._kind = session, kind
        self._stage = session.name_of(kind)
        self._first: list[str] = []  # answers before the first update; kept for a judge only

    def measure(self, step: int, version: int) -> dict[str, float]:
        """Metrics of the weights of `version`, names without the stage's prefix; {} if off.

        Args:
            step: Updates so far; 0 = before the first.
            version: Of the weights, which the engines serve.

        Raises:
            ConfigError: the judging endpoint rejects the key, or does not know the model.
        """
        session = self._session
        settings = session.config.algorithm
        if not settings.evaluate_every:
            return {}
        prompts = session.source.prompts("heldout", 0, settings.evaluation_prompts)
        by_model = session.config.gold_model
        gold = not by_model and session.source.gold([], []) is not None
        seed = (self._stage, "gold" if gold else "heldout", step)
        environment = session.config.environment
        texts, batch = sampled_answers(session, environment, version, prompts, *seed)
        values = self._golds(prompts, texts) if gold else self._rewards(prompts, batch)
        if by_model and is_rewarded(session.config, self._kind):
            values |= self._by_gold_model(prompts, batch)
        return values | self._preferred(step, prompts, texts)

    def state(self) -> dict[str, Any]:
        """State as plain values."""
        return {"first": self._first}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a saved `state`."""
        self._first = list(state.get("first", []))

    def _golds(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> dict[str, float]:
        golds = self._session.source.gold(prompts, texts) or []
        return {
            "gold_mean": _mean([g.score for g in golds]),
            "gold_rude_rate": _mean([g.rude for g in golds]),
            "gold_truthful_rate": _mean([g.truthful for g in golds]),
        }

    def _rewards(self, prompts: Sequence[Prompt], batch: RolloutBatch) -> dict[str, float]:
        """Rewards of the answers, without any penalty."""
        session = self._session
        values = {
            "heldout_response_tokens_mean": float(batch.response_lengths.mean()),
            "heldout_eos_rate": float((batch.finish == Finish.STOP).mean()),
        }
        if not is_rewarded(session.config, self._kind):
            return values
        session.fleet.rollout.sleep().result()  # frees memory for models that share its GPU
        scores = session.fleet.reward.score_batch(batch, session.asked(prompts)).result()
        ok = np.array([not failure for failure in scores.failures])
        values["heldout_failed"] = float((~ok).sum())
        if not ok.any():
            session.live.note(f"no held-out prompt has a reward, first: {told(scores)[0]}")
            return values
        for name, (own, _) in scored_by_term(scores).items():
            if len(own):
                values[f"heldout_reward/{name}"] = _mean(own.tolist())
        return values | {"heldout_score_mean": _mean(scores.values[ok].tolist())}

    def _by_gold_model(self, prompts: Sequence[Prompt], batch: RolloutBatch) -> dict[str, float]:
        """Scores of the gold reward model, which the reward role holds only meanwhile."""
        session, config = self._session, self._session.config
        sft = session.need("sft")
        gold = judge_spec(config, session.need("gold"), sft)
        words = ("held-out answers", self._stage, "give a gold model that scores every answer")
        scores = all_scored(session, gold, prompts, batch, words)
        proxy = session.need("reward_model") if config.reward.needs.model else ""
        session.fleet.reward.load(reward_spec(config, proxy, sft)).result()
        return {"gold_mean": _mean(scores.tolist())}

    def _preferred(
        self, step: int, prompts: Sequence[Prompt], texts: Sequence[str]
    ) -> dict[str, float]:
        """How often the judge prefers these answers to the first ones; a tie counts half."""
        session = self._session
        if session.config.training_judge is None:
            return {}
        if step == 0:
            self._first = list(texts)
            return {}
        try:
            rate = preferred(session, session.config.training_judge, prompts, texts, self._first)
        except (JudgeError, DeadlineError) as error:  # hours of training are worth more
            session.live.note(f"the judge gave no verdicts on held-out answers: {error.what}")
            return {}
        if rate is None:
            return {}
        return {
            "heldout_preferred": rate.rate,
            "heldout_preferred_low": rate.low,
            "heldout_preferred_high": rate.high,
        }


def tell_start(session: Session, values: Mapping[str, float]) -> None:
    """Show the headlines of the weights before the first update."""
    for name in HEADLINES:
        if name in values:
            session.live.note(f"before the first update: {headline(name, values[name])}")


def _mean(numbers: Sequence[float]) -> float:
    return float(np.mean(numbers, dtype=np.float64))

"""State of one PPO run: what the driver holds, and what a checkpoint stores of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.config.training import KLPlace
from orchestrator.roles.trainer_groups import TrainerGroup
from orchestrator.roles.weight_sync import WeightSync
from orchestrator.session.conversations import Failure, lost_of
from orchestrator.session.session import Session
from orchestrator.stages.ppo.ledger import Ledger, from_ranges, ranges
from orchestrator.stages.ppo.queue import Batch, RolloutQueue
from orchestrator.stages.ppo.saved_rollouts import SavedRollouts
from orchestrator.stages.ppo.scores import Scoring
from orchestrator.stages.selection.heldout import Heldout
from workers.records.training import TokenBatch
from workers.training.estimator import Estimator

if TYPE_CHECKING:  # imports torch
    from workers.ops.kl import AdaptiveKLController


@dataclass(slots=True)
class PPORun:
    """The state of one PPO run."""

    session: Session
    stage: str
    estimator: Estimator
    ptx_coefficient: float
    sync: WeightSync
    version: int  # of the weights that the engines serve
    adaptive_kl: AdaptiveKLController | None  # None = fixed
    ledger: Ledger
    scoring: Scoring
    queue: RolloutQueue
    heldout: Heldout
    text: Callable[[int, int], TokenBatch]  # start, count -> pretraining documents or rows
    learns_rankings: bool = False  # the policy learns from pairs of its samples, without advantages
    engine_logprobs: bool | None = None  # whether PPO's old ones; None: not chosen yet
    prompts_added: int = 0  # by further batches of iterations so far
    documents_used: int = 0  # cursor into the pretraining text, in documents or full rows

    @property
    def staleness(self) -> int:
        """How many updates old the weights that sampled a trained sequence may be."""
        return self.session.config.algorithm.staleness

    @property
    def trainers(self) -> tuple[TrainerGroup, ...]:
        """The policy's trainers, and the critic's if there is one."""
        fleet = self.session.fleet
        return (fleet.policy, fleet.critic) if self.estimator.needs_values else (fleet.policy,)

    @property
    def kl_coefficient(self) -> float:
        """Reward units per nat, this iteration."""
        scale = self.session.corrections.kl_scale
        if self.adaptive_kl is not None:
            return self.adaptive_kl.value * scale
        return self.session.config.algorithm.kl.coefficient * scale

    @property
    def reward_kl_coefficient(self) -> float:
        """Of the penalty in the reward; 0 if it is in the loss."""
        return 0.0 if self._kl_in_loss else self.kl_coefficient

    @property
    def loss_kl_coefficient(self) -> float:
        """Of the penalty in the loss; 0 if it is in the reward."""
        return self.kl_coefficient if self._kl_in_loss else 0.0

    @property
    def _kl_in_loss(self) -> bool:
        return self.session.config.algorithm.kl.place is KLPlace.loss

    @property
    def saved_rollouts(self) -> SavedRollouts:
        """The batches that are sampled ahead, as files of a checkpoint."""
        return SavedRollouts(self.queue, self.session.fleet.rollout)

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores of this run beside the trainers' state, as plain values."""
        return {
            "version": self.version,
            "counters": self.session.counters(),
            "kl": self.adaptive_kl.state_dict() if self.adaptive_kl is not None else None,
            "ledger": self.ledger.state_dict(),
            "scoring": self.scoring.state(),
            "heldout": self.heldout.state(),
            "documents_used": self.documents_used,
            "prompts_added": self.prompts_added,
            "engine_logprobs": self.engine_logprobs,
            "ahead": [
                {"iteration": b.iteration, "ids": ranges(b.ids.tolist())}
                | ({"lost": lost} if (lost := _lost(b)) else {})
                for b in self.queue
            ],
        }

    def restore(self, folder: str, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint, and the rollouts stored in it.

        Args:
            folder: The checkpoint.
            state: What `state` gave.
        """
        self.version = state["version"]
        self.session.restore_counters(state["counters"])  # starting the engines used up a version
        if self.adaptive_kl is not None:
            self.adaptive_kl.load_state_dict(state["kl"])
        self.ledger.load_state_dict(state["ledger"])
        self.scoring.restore(state["scoring"])
        self.heldout.restore(state.get("heldout", {}))
        self.documents_used = state["documents_used"]
        self.prompts_added = state.get("prompts_added", 0)
        self.engine_logprobs = state.get("engine_logprobs", self.engine_logprobs)
        for batch in state["ahead"]:
            ids = np.array(from_ranges(batch["ids"]), np.int64)
            lost = {int(i): Failure(*words) for i, words in batch.get("lost", {}).items()}
            saved = self.saved_rollouts.restore(folder, batch["iteration"], ids, lost)
            self.queue.adopt(saved)


def _lost(batch: Batch) -> dict[str, list[str]]:
    """The sequences of a batch whose environment failed, as plain values; waits for the batch."""
    found = lost_of(batch.generation).items()
    return {str(i): [failure.reason, failure.words] for i, failure in found}

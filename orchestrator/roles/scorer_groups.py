"""Groups of workers that share no state: replicas of reward, reference and environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.roles.group import Each, Group, LanguageModelGroup, Launch
from orchestrator.roles.interfaces import Rollouts
from orchestrator.supervision.backend import Call, WorkerClass
from orchestrator.supervision.pending import Pending, everything, first, nothing
from workers.data.rows.asked import Asked
from workers.records.arrays import FloatArray
from workers.records.combining import combined
from workers.records.environment import Ask, Told
from workers.records.gather import gather_scores
from workers.records.generation import RolloutBatch
from workers.records.processes import RoleInfo
from workers.records.specs import EnvironmentSpec, FrozenModelSpec, RewardSpec
from workers.records.training import Scores, TokenBatch

# Calls of a reward that waits for others' servers: parts of a batch while it is sampled.
_OVERLAPPING = 32


class _ReplicaGroup(Group):
    """Independent workers: a lost one is restarted and reloaded, and its call repeated."""

    replicas = True

    def __init__(self, launch: Launch) -> None:
        super().__init__(launch)
        self._spec: Any = None

    def _load(self, spec: Any) -> Pending[list[RoleInfo]]:
        self._spec = spec
        return self._all("load", self._remember, spec, starting=True, again=True)

    def _reload(self, rank: int) -> None:
        info = self._all("load", first, self._spec, ranks=[rank], starting=True).result()
        if self.infos:
            self._remember_one(info)


class RewardGroup(_ReplicaGroup):
    """n replicas that score whole sequences."""

    role = "reward"
    worker = WorkerClass("workers.roles.reward", "RewardWorker", overlapping=_OVERLAPPING)

    def load(self, spec: RewardSpec) -> Pending[list[RoleInfo]]:
        """Load the reward model or function."""
        return self._load(spec)

    def score(self, rollouts: Rollouts, asked: Sequence[Asked] = ()) -> Pending[Scores]:
        """One score or recorded failure per sequence, in the order of the summary.

        Args:
            rollouts: The sequences.
            asked: Their prompts as text, for a reward that reads text.
        """
        # Without a specification nothing is loaded: the workers say so.
        overlaps = self._spec is not None and self._spec.overlaps
        ids = rollouts.summary.ids
        hands = [ids[i :: self.size] for i in range(self.size)]
        busy = [rank for rank, hand in enumerate(hands) if len(hand)]
        return self._all(
            Call("score", overlaps=overlaps),
            lambda parts: combined(gather_scores(parts, ids)),
            Each(hands),
            Each([rollouts.holding(hand) for hand in hands]),
            asked,
            ranks=busy,
            again=True,
        )

    def score_batch(self, batch: RolloutBatch, asked: Sequence[Asked] = ()) -> Pending[Scores]:
        """Like `score`, for sequences that the driver holds."""
        return self.score(Rollouts.of(self._launch.backend.put(batch), batch.summary()), asked)


class ReferenceGroup(_ReplicaGroup, LanguageModelGroup):
    """n replicas of a frozen language model."""

    role = "reference"
    worker = WorkerClass("workers.roles.reference", "ReferenceWorker")

    def load(self, spec: FrozenModelSpec) -> Pending[list[RoleInfo]]:
        """Load the frozen model."""
        self.packed = spec.packed
        return self._load(spec)

    def row_losses(self, batches: Sequence[TokenBatch]) -> Pending[list[FloatArray]]:
        """Summed loss of each row's targets, (B,) nats; one batch per replica."""
        return self._all("row_losses", everything, Each(batches), again=True)


class EnvironmentGroup(_ReplicaGroup):
    """n workers that answer conversations; a sequence stays with one as long as that lives."""

    role = "environment"
    worker = WorkerClass("workers.roles.environment", "EnvironmentWorker")

    def load(self, spec: EnvironmentSpec) -> Pending[list[RoleInfo]]:
        """Import the environment."""
        return self._load(spec)

    def step(self, asks: Sequence[Ask]) -> list[Told]:
        """Answer a turn of each conversation, in any order; waits for all of them.

        A worker answers for a limited time per call, so that the deadline of a call does not depend
        on how many conversations there are. A lost worker is replaced, and asked again.
        """
        waiting = [[ask for ask in asks if ask.id % self.size == rank] for rank in range(self.size)]
        found: list[Told] = []
        while any(waiting):
            busy = [rank for rank, hand in enumerate(waiting) if hand]
            answers: list[list[Told]] = self._all(
                "step", everything, Each(waiting), ranks=busy, again=True
            ).result()
            for rank, told in zip(busy, answers, strict=True):
                waiting[rank] = waiting[rank][len(told) :]
                found += told
        return found

    def forget(self) -> None:
        """Drop the environments of conversations, which have all ended."""
        self._all("forget", nothing, again=True).result()

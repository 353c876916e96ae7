"""Groups of trainers: policy and critic, each one DeepSpeed process group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.roles.actors import CriticActor, PolicyActor
from orchestrator.roles.group import Group, LanguageModelGroup, in_order, keeping
from orchestrator.roles.interfaces import Experience, Fields, Ref, Rollouts
from orchestrator.supervision.pending import Pending, everything, first, nothing
from workers.records.arrays import FloatArray
from workers.records.processes import FileRecord, RankAddress, RoleInfo
from workers.records.specs import GroupSpec, PolicyLossSpec, ShapingSpec, TrainModelSpec
from workers.records.training import (
    PairCounts,
    PolicyStep,
    RankingStep,
    Scores,
    SequenceField,
    StepStats,
    StepWork,
    SupervisedStep,
    TextLoss,
    TokenBatch,
    Work,
)
from workers.records.weights import GroupAddress, WeightOffer, WeightReceipt


class _TrainerGroup(Group):
    """n ranks of one DeepSpeed process group."""

    _rests = False  # whether the ranks free GPU memory for the engines

    def join(self, spec: GroupSpec) -> Pending[list[RoleInfo]]:
        """Form the process group; call this once per process lifetime."""
        self._rests = spec.rest != "none"
        host, port = self._all(
            "address", lambda actor, _: actor.address.remote(), first, ranks=[0], starting=True
        ).result()
        return self._all(
            "join",
            lambda actor, rank: actor.join.remote(RankAddress(rank, self.size, host, port), spec),
            self._remember,
            starting=True,
        )

    def load(self, spec: TrainModelSpec) -> Pending[None]:
        """Build model, optimizer and schedule, replacing what was there."""
        self.packed = spec.packed
        return self._all("load", lambda actor, _: actor.load.remote(spec), nothing, starting=True)

    def save(self, path: str, tokenizer_from: str) -> Pending[None]:
        """Write a Hugging Face folder; all ranks take part, rank 0 writes."""
        return self._all("save", lambda actor, _: actor.save.remote(path, tokenizer_from), nothing)

    def snapshot(self, folder: str) -> Pending[None]:
        """Copy the training state; each rank writes its part while training continues."""
        return self._all("snapshot", lambda actor, _: actor.snapshot.remote(folder), nothing)

    def written(self) -> Pending[list[FileRecord]]:
        """The files of the last snapshot, once they are completely written."""
        return self._all("write snapshot", lambda actor, _: actor.written.remote(), everything)

    def rest(self) -> Pending[None]:
        """Free GPU memory for engines that are about to sample, if the group's spec says so."""
        ranks = None if self._rests else ()
        return self._all("rest", lambda actor, _: actor.rest.remote(), nothing, ranks=ranks)

    def restore(self, folder: str) -> Pending[None]:
        """Resume from a snapshot."""
        return self._all(
            "restore", lambda actor, _: actor.restore.remote(folder), nothing, starting=True
        )


class PolicyGroup(_TrainerGroup, LanguageModelGroup):
    """The policy's trainers."""

    role, worker = "policy", PolicyActor

    def shares_rows(self) -> Pending[bool]:
        """Whether the loaded model lets documents share a row without attending to each other."""
        return self._all("ask", lambda actor, _: actor.shares_rows.remote(), first, ranks=[0])

    def train_supervised(self, steps: Sequence[SupervisedStep]) -> Pending[StepStats]:
        """One optimizer step on next-token loss; one share per rank."""
        return self._all(
            "train", lambda actor, rank: actor.train_supervised.remote(steps[rank]), first
        )

    def evaluate_supervised(self, steps: Sequence[SupervisedStep]) -> Pending[TextLoss]:
        """Loss without an update; one share per rank."""
        return self._all(
            "evaluate", lambda actor, rank: actor.evaluate_supervised.remote(steps[rank]), first
        )

    def kl_sums(
        self, works: Sequence[Work], rollouts: Rollouts, old: Fields, reference: Fields
    ) -> Pending[list[SequenceField]]:
        """KL to the reference, k1 estimate, summed over each sequence, nats; one part per rank."""
        inputs = (rollouts.shards, old.shards, reference.shards)
        return self._all(
            "sum KL", lambda actor, rank: actor.kl_sums_of.remote(works[rank], *inputs), everything
        )

    def build_experience(
        self,
        works: Sequence[Work],
        rollouts: Rollouts,
        old: Fields,
        reference: Fields,
        values: Fields,
        scores: Scores,
        shaping: ShapingSpec,
        numbers: SequenceField | None = None,
    ) -> Pending[Experience]:
        """Token rewards, advantages and returns; each rank builds and keeps its own share."""
        shards: dict[int, Ref] = {}
        inputs = (rollouts.shards, old.shards, reference.shards, values.shards)
        return self._all(
            "build experience",
            keeping(
                shards,
                lambda actor, rank: actor.build_experience_of.remote(
                    works[rank], *inputs, scores, shaping, numbers
                ),
            ),
            lambda summaries: Experience(in_order(shards), tuple(summaries)),
        )

    def update(
        self, steps: Sequence[list[PolicyStep]], experience: Experience, loss: PolicyLossSpec
    ) -> Pending[list[StepStats]]:
        """PPO steps in order; `steps[rank]` holds that rank's share of each."""
        return self._all(
            "update",
            lambda actor, rank: actor.update_on.remote(steps[rank], experience.shards, loss),
            first,
        )

    def transfer_address(self, receivers: int, transport: str) -> GroupAddress:
        """Where rank 0 will wait for the engines to connect."""
        host, port = self._all(
            "address", lambda actor, _: actor.address.remote(), first, ranks=[0]
        ).result()
        return GroupAddress(host, port, 1 + receivers, transport)

    def connect(self, address: GroupAddress) -> Pending[None]:
        """Join the transfer group as its sender."""
        return self._all(
            "connect", lambda actor, _: actor.connect.remote(address), nothing, ranks=[0]
        )

    def publish_weights(self, version: int, transport: str) -> Pending[WeightOffer]:
        """Offer the current weights; a one-sided transport writes them at once."""
        return self._all(
            "publish weights",
            lambda actor, _: actor.publish_weights.remote(version, transport),
            first,
        )

    def send_weights(self, offer: WeightOffer) -> Pending[WeightReceipt]:
        """Send an offer to the connected engines; all ranks take part in gathering."""
        return self._all("send weights", lambda actor, _: actor.send_weights.remote(offer), first)


class CriticGroup(_TrainerGroup):
    """The trainers of scalar-head models: the reward model, then the value function."""

    role, worker = "critic", CriticActor

    def train_rankings(self, steps: Sequence[RankingStep]) -> Pending[StepStats]:
        """One optimizer step of the reward model."""
        return self._all(
            "train rankings", lambda actor, rank: actor.train_rankings.remote(steps[rank]), first
        )

    def evaluate_rankings(self, steps: Sequence[RankingStep]) -> Pending[PairCounts]:
        """Held-out pairs ordered as labeled, and every score."""
        return self._all(
            "evaluate rankings",
            lambda actor, rank: actor.evaluate_rankings.remote(steps[rank]),
            _join_counts,
        )

    def score(self, batch: TokenBatch) -> Pending[FloatArray]:
        """Reward of whole sequences, (B,); every rank computes the same."""
        return self._all("score", lambda actor, _: actor.score.remote(batch), first)

    def shift_bias(self, mean: float) -> Pending[None]:
        """Lower every score by `mean`."""
        return self._all("shift bias", lambda actor, _: actor.shift_bias.remote(mean), nothing)

    def values(self, works: Sequence[Work], rollouts: Rollouts) -> Pending[Fields]:
        """Value of the state before each response token."""
        return self._fields(
            "values", lambda actor, rank: actor.values_of.remote(works[rank], rollouts.shards)
        )

    def update(
        self, steps: Sequence[list[StepWork]], experience: Experience, value_clip: float
    ) -> Pending[list[StepStats]]:
        """Value-function steps in order."""
        return self._all(
            "update",
            lambda actor, rank: actor.update_on.remote(steps[rank], experience.shards, value_clip),
            first,
        )


def _join_counts(parts: list[PairCounts]) -> PairCounts:
    """Join the scores of the ranks; the counts of each rank already cover all ranks."""
    return replace(parts[0], scores=tuple(s for part in parts for s in part.scores))

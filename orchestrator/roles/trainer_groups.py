"""Groups of trainers: policy and critic, each one DeepSpeed process group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from orchestrator.roles.group import Each, Group, LanguageModelGroup
from orchestrator.roles.interfaces import Experience, Fields, Rollouts
from orchestrator.supervision.backend import Call, WorkerClass, in_two
from orchestrator.supervision.pending import Pending, everything, first, nothing
from workers.records.arrays import FloatArray, IntArray
from workers.records.processes import FileRecord, RankAddress, RoleInfo
from workers.records.specs import (
    GroupSpec,
    PolicyLossSpec,
    PreferenceSpec,
    ShapingSpec,
    TrainModelSpec,
)
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


class TrainerGroup(Group):
    """n ranks of one DeepSpeed process group."""

    _rests = False  # whether the ranks free GPU memory for the engines

    def join(self, spec: GroupSpec) -> Pending[list[RoleInfo]]:
        """Form the process group; call this once per process lifetime."""
        self._rests = spec.rest != "none"
        host, port = self._all("address", first, ranks=[0], starting=True).result()
        where = Each([RankAddress(rank, self.size, host, port) for rank in range(self.size)])
        return self._all("join", self._remember, where, spec, starting=True)

    def load(self, spec: TrainModelSpec) -> Pending[None]:
        """Build model, optimizer and schedule, replacing what was there."""
        self.packed = spec.packed
        return self._all("load", nothing, spec, starting=True)

    def save(self, path: str, tokenizer_from: str) -> Pending[None]:
        """Write a Hugging Face folder; all ranks take part, rank 0 writes."""
        return self._all("save", nothing, path, tokenizer_from)

    def snapshot(self, folder: str) -> Pending[None]:
        """Copy the training state; each rank writes its part while training continues."""
        return self._all("snapshot", nothing, folder)

    def written(self) -> Pending[list[FileRecord]]:
        """The files of the last snapshot, once they are completely written."""
        return self._all("written", everything)

    def rest(self) -> Pending[None]:
        """Free GPU memory for engines that are about to sample, if the group's spec says so.

        The ranks take it back by themselves with the next update.
        """
        return self._all("rest", nothing, ranks=None if self._rests else ())

    def restore(self, folder: str) -> Pending[None]:
        """Resume from a snapshot; call right after `load`."""
        return self._all("restore", nothing, folder, starting=True)


class PolicyGroup(TrainerGroup, LanguageModelGroup):
    """The policy's trainers."""

    role, worker = "policy", WorkerClass("workers.roles.policy", "PolicyWorker")

    def shares_rows(self) -> Pending[bool]:
        """Whether the loaded model lets documents share a row without attending to each other."""
        return self._all("shares_rows", first, ranks=[0])

    def train_supervised(self, steps: Sequence[SupervisedStep]) -> Pending[StepStats]:
        """One optimizer step on next-token loss; one share per rank."""
        return self._all("train_supervised", first, Each(steps))

    def evaluate_supervised(self, steps: Sequence[SupervisedStep]) -> Pending[TextLoss]:
        """Loss without an update; one share per rank."""
        return self._all("evaluate_supervised", first, Each(steps))

    def complete(
        self, prompts: Sequence[IntArray], limit: int, stop: int
    ) -> Pending[list[IntArray]]:
        """Greedy answers of at most `limit` tokens to some prompts, without `stop`, which ends one.

        For a few texts to look at; engines sample what is trained on.
        """
        return self._all("complete", first, list(prompts), limit, stop)

    def train_preferences(
        self, steps: Sequence[RankingStep], spec: PreferenceSpec
    ) -> Pending[StepStats]:
        """One optimizer step on rankings; one share per rank."""
        return self._all("train_preferences", first, Each(steps), spec)

    def evaluate_preferences(
        self, steps: Sequence[RankingStep], spec: PreferenceSpec
    ) -> Pending[PairCounts]:
        """Pairs ordered as labeled, without an update, and every implicit reward."""
        return self._all("evaluate_preferences", _join_counts, Each(steps), spec)

    def kl_sums(
        self, works: Sequence[Work], rollouts: Rollouts, old: Fields, reference: Fields
    ) -> Pending[list[SequenceField]]:
        """KL to the reference, k1 estimate, summed over each sequence, nats; one part per rank.

        If `old` has no shards, the log-probabilities of the rollouts are used instead.
        """
        inputs = _of_works(works, rollouts, old, reference)
        return self._all("kl_sums", everything, Each(works), *inputs)

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
        """Token rewards, advantages and returns; each rank builds and keeps its own share.

        If `old` has no shards, the log-probabilities of the rollouts are used instead; if `values`
        has none, there is no critic. `numbers` is what the estimator computed on the driver.
        """
        inputs = _of_works(works, rollouts, old, reference, values)
        return self._all(
            Call("build_experience", in_two),
            lambda found: Experience(*map(tuple, zip(*found, strict=True))),
            Each(works),
            *inputs,
            scores,
            shaping,
            numbers,
        )

    def update(
        self, steps: Sequence[list[PolicyStep]], experience: Experience, loss: PolicyLossSpec
    ) -> Pending[list[StepStats]]:
        """PPO steps in order; `steps[rank]` holds that rank's share of each."""
        ids = [[step.ppo.work.ids for step in own] for own in steps]
        return self._all("update", first, Each(steps), _of_steps(ids, experience), loss)

    def transfer_address(self, receivers: int, transport: str) -> GroupAddress:
        """Where rank 0 will wait for the engines to connect."""
        host, port = self._all("address", first, ranks=[0]).result()
        return GroupAddress(host, port, 1 + receivers, transport)

    def connect(self, address: GroupAddress) -> Pending[None]:
        """Join the transfer group as its sender."""
        return self._all("connect", nothing, address, ranks=[0])

    def publish_weights(self, version: int, transport: str) -> Pending[WeightOffer]:
        """Offer the current weights; a one-sided transport writes them at once."""
        return self._all("publish_weights", first, version, transport)

    def send_weights(self, offer: WeightOffer) -> Pending[WeightReceipt]:
        """Send an offer to the connected engines; all ranks take part in gathering."""
        return self._all("send_weights", first, offer)


class CriticGroup(TrainerGroup):
    """The trainers of scalar-head models: the reward model, then the value function."""

    role, worker = "critic", WorkerClass("workers.roles.critic", "CriticWorker")

    def train_rankings(self, steps: Sequence[RankingStep]) -> Pending[StepStats]:
        """One optimizer step of the reward model."""
        return self._all("train_rankings", first, Each(steps))

    def evaluate_rankings(self, steps: Sequence[RankingStep]) -> Pending[PairCounts]:
        """Held-out pairs ordered as labeled, and every score."""
        return self._all("evaluate_rankings", _join_counts, Each(steps))

    def score(self, batch: TokenBatch) -> Pending[FloatArray]:
        """Reward of whole sequences, (B,); every rank computes the same."""
        return self._all("score", first, batch)

    def shift_bias(self, mean: float) -> Pending[None]:
        """Lower every score by `mean`."""
        return self._all("shift_bias", nothing, mean)

    def values(self, works: Sequence[Work], rollouts: Rollouts) -> Pending[Fields]:
        """Value of the state before each response token."""
        return self._fields("values", works, rollouts)

    def update(
        self, steps: Sequence[list[StepWork]], experience: Experience, value_clip: float
    ) -> Pending[list[StepStats]]:
        """Value-function steps in order."""
        ids = [[step.work.ids for step in own] for own in steps]
        return self._all("update", first, Each(steps), _of_steps(ids, experience), value_clip)


def _of_works(works: Sequence[Work], *records: Rollouts | Fields) -> list[Each]:
    """Of each record, the shards that each rank needs for its work."""
    return [Each([record.holding(work.ids) for work in works]) for record in records]


def _of_steps(ids: Sequence[Sequence[IntArray]], experience: Experience) -> Each:
    """The shards that each rank needs for its steps, which are on these sequences."""
    return Each([experience.holding(np.concatenate(own)) for own in ids])


def _join_counts(parts: list[PairCounts]) -> PairCounts:
    """Join the scores of the ranks; the counts of each rank already cover all ranks."""
    return replace(parts[0], scores=tuple(s for part in parts for s in part.scores))

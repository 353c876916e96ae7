"""Protocols through which the stages use the role groups, and the records that they exchange.

The stages depend on these protocols and not on Ray. The groups of `orchestrator.roles` implement
them over a back end (`supervision/backend.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from orchestrator.config.cluster import RoleName
from orchestrator.supervision.backend import Ref, Stored
from workers.data.rows.asked import Asked
from workers.records.arrays import FloatArray, IntArray
from workers.records.generation import (
    Delivery,
    GenerationRequest,
    RolloutBatch,
    RolloutSummary,
    Sampling,
)
from workers.records.processes import FileRecord, RoleInfo
from workers.records.specs import (
    FrozenModelSpec,
    PolicyLossSpec,
    RewardSpec,
    RolloutSpec,
    ShapingSpec,
    TrainModelSpec,
)
from workers.records.training import (
    ExperienceSummary,
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
    TokenField,
    Work,
)
from workers.records.weights import GroupAddress, WeightOffer, WeightReceipt

T_co = TypeVar("T_co", covariant=True)

WHOLE = Delivery()  # all sequences, in one part


@dataclass(frozen=True, slots=True)
class Rollouts:
    """References to sequences, in the shards that the engines returned, and their scalars."""

    shards: tuple[Ref, ...]  # of RolloutBatch
    summary: RolloutSummary
    held: tuple[IntArray, ...]  # ids in each shard; the summary may lack some of them

    @classmethod
    def of(cls, shard: Ref, summary: RolloutSummary) -> Rollouts:
        """The sequences of one shard."""
        return cls((shard,), summary, (summary.ids,))

    def holding(self, ids: IntArray) -> Stored:
        """The shards that a worker on these sequences needs."""
        return _holding(self.shards, self.held, ids)


def joined(parts: Sequence[Rollouts]) -> Rollouts:
    """Several parts as one, in order."""
    names = RolloutSummary.__dataclass_fields__
    columns = [np.concatenate([getattr(p.summary, name) for p in parts]) for name in names]
    shards = tuple(s for p in parts for s in p.shards)
    return Rollouts(shards, RolloutSummary(*columns), tuple(h for p in parts for h in p.held))


def _holding(shards: tuple[Ref, ...], held: Sequence[IntArray], ids: IntArray) -> Stored:
    owners = np.repeat(np.arange(len(shards)), [len(each) for each in held])
    needed = np.unique(owners[np.isin(np.concatenate([*held, ids[:0]]), ids)]).tolist()
    # A worker without sequences, or whose sequences are missing, needs a shard to look into.
    return Stored(tuple(shards[n] for n in needed) or shards[:1])


@dataclass(frozen=True, slots=True)
class Fields:
    """References to one number per token, one shard per rank."""

    shards: tuple[Ref, ...]  # of TokenField
    held: tuple[IntArray, ...]  # ids in each shard

    def holding(self, ids: IntArray) -> Stored:
        """The shards that a worker on these sequences needs."""
        return _holding(self.shards, self.held, ids)


@dataclass(frozen=True, slots=True)
class Experience:
    """References to sequences ready for PPO, one shard per policy rank, and their scalars."""

    shards: tuple[Ref, ...]  # of ExperienceBatch
    summaries: tuple[ExperienceSummary, ...]

    def holding(self, ids: IntArray) -> Stored:
        """The shards that a worker on these sequences needs."""
        return _holding(self.shards, [summary.ids for summary in self.summaries], ids)


class Answer(Protocol[T_co]):
    """A call that has started."""

    def result(self) -> T_co:
        """Wait for the result; raises the typed error of the first rank that failed or was late."""
        ...


class Generation(Answer[Rollouts], Protocol):
    """A generation that has started; its sequences may come in several parts."""

    def parts(self) -> Iterator[Rollouts]:
        """Each part as soon as it arrives, until all have; each call starts from the first part.

        Raises the typed error of the first engine that failed, died or was late.
        """
        ...


class Rollout(Protocol):
    """n independent generation engines."""

    @property
    def ranks(self) -> list[int]:
        """Engines that calls go to; excludes those that are being restarted."""
        ...

    def start(self, spec: RolloutSpec, version: int) -> Answer[list[RoleInfo]]:
        """Build the engines with a checkpoint's weights, admitted as `version`."""
        ...

    def restart(self, spec: RolloutSpec, version: int) -> Answer[list[RoleInfo]]:
        """Replace the engines by fresh processes (another architecture)."""
        ...

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        version: int,
        delivery: Delivery = WHOLE,
    ) -> Generation:
        """Sample requests; StaleEngineError unless admitted for exactly `version`."""
        ...

    def sleep(self) -> Answer[None]:
        """Free the engines' GPU memory for other roles, if the spec says so and none samples.

        They take it back by themselves for the next call that needs it.
        """
        ...

    def pause(self) -> Answer[None]:
        """Interrupt all generations, between two engine steps, until `resume`."""
        ...

    def resume(self, version: int) -> None:
        """Resume interrupted generations under `version`, which the engines have admitted."""
        ...

    def hold(self, batch: RolloutBatch) -> Rollouts:
        """Store sequences of an earlier process as if engines had just sampled them: one shard."""
        ...

    def fetch(self, rollouts: Rollouts) -> Answer[RolloutBatch]:
        """Bring whole sequences to the driver: for texts and labels, never for training."""
        ...

    def load_checkpoint(self, path: str, version: int) -> Answer[list[WeightReceipt]]:
        """Load a Hugging Face folder of the same architecture, admitted as `version`."""
        ...

    def connect(self, address: GroupAddress) -> Answer[None]:
        """Join the transfer group; the sender is rank 0, engine i is rank 1 + i."""
        ...

    def receive_weights(
        self, offer: WeightOffer, ranks: Sequence[int] | None = None
    ) -> Answer[list[WeightReceipt]]:
        """Load offered weights; the engines stay unverified until admitted.

        Args:
            offer: The weights.
            ranks: Restarted engines that get what their peers serve; None: all engines.
        """
        ...

    def probe(
        self,
        prompts: list[tuple[int, ...]],
        max_tokens: int,
        temperature: float,
        version: int,
        ranks: Sequence[int] | None = None,
    ) -> Answer[Rollouts]:
        """Sample a few tokens on every engine, one shard each; works with unverified weights."""
        ...

    def admit(self, version: int, ranks: Sequence[int] | None = None) -> Answer[None]:
        """Let the engines serve `version`."""
        ...

    # (rank, version): brings a restarted engine to the version that its peers serve; None while no
    # trainer holds these weights.
    refresh: Callable[[int, int], None] | None

    def replace_lost(self) -> list[str]:
        """Leave out engines that died or hang, and have them restarted; returns their names."""
        ...

    def join(self) -> None:
        """Take back engines that have restarted; call before all get the same weights."""
        ...


class Reward(Protocol):
    """n replicas that score whole sequences."""

    @property
    def size(self) -> int:
        """Number of replicas."""
        ...

    def load(self, spec: RewardSpec) -> Answer[list[RoleInfo]]:
        """Load the reward model or function."""
        ...

    def score(self, rollouts: Rollouts, asked: Sequence[Asked] = ()) -> Answer[Scores]:
        """One score or recorded failure per sequence, in the order of the summary.

        Args:
            rollouts: The sequences.
            asked: Their prompts as text, for a reward that reads text.
        """
        ...

    def score_batch(self, batch: RolloutBatch, asked: Sequence[Asked] = ()) -> Answer[Scores]:
        """Like `score`, for sequences that the driver holds."""
        ...


class Reference(Protocol):
    """n replicas of a frozen language model."""

    @property
    def size(self) -> int:
        """Number of replicas."""
        ...

    @property
    def packed(self) -> bool:
        """Whether the loaded model takes sequences end to end, without padding."""
        ...

    def load(self, spec: FrozenModelSpec) -> Answer[list[RoleInfo]]:
        """Load the frozen model."""
        ...

    def logprobs(
        self, works: Sequence[Work], rollouts: Rollouts, temperature: float
    ) -> Answer[Fields]:
        """Log-probabilities of the response tokens, nats; one work per replica."""
        ...

    def fetch(self, fields: Fields) -> Answer[list[TokenField]]:
        """Bring token fields to the driver: for the parity probe, a few tokens per model."""
        ...

    def row_losses(self, batches: Sequence[TokenBatch]) -> Answer[list[FloatArray]]:
        """Summed loss of each row's targets, (B,) nats; one batch per replica."""
        ...


class Saver(Protocol):
    """A role whose state belongs in a checkpoint of the run."""

    def snapshot(self, folder: str) -> Answer[None]:
        """Copy the state; it is written into `folder` while training continues."""
        ...

    def written(self) -> Answer[list[FileRecord]]:
        """The files of the last snapshot, once they are completely written."""
        ...


class Trainer(Saver, Protocol):
    """n ranks of one process group."""

    @property
    def size(self) -> int:
        """Number of ranks."""
        ...

    @property
    def packed(self) -> bool:
        """Whether the loaded model takes sequences end to end, without padding."""
        ...

    def load(self, spec: TrainModelSpec) -> Answer[None]:
        """Build model, optimizer and schedule, replacing what was there."""
        ...

    def save(self, path: str, tokenizer_from: str) -> Answer[None]:
        """Write a Hugging Face folder; all ranks take part, rank 0 writes."""
        ...

    def rest(self) -> Answer[None]:
        """Free GPU memory for engines that are about to sample, if the group's spec says so.

        The ranks take it back by themselves with the next update.
        """
        ...

    def restore(self, folder: str) -> Answer[None]:
        """Resume from a snapshot; call right after `load`."""
        ...


class Policy(Trainer, Protocol):
    """The policy's trainers."""

    def shares_rows(self) -> Answer[bool]:
        """Whether the loaded model lets documents share a row without attending to each other."""
        ...

    def train_supervised(self, steps: Sequence[SupervisedStep]) -> Answer[StepStats]:
        """One optimizer step on next-token loss; one share per rank."""
        ...

    def evaluate_supervised(self, steps: Sequence[SupervisedStep]) -> Answer[TextLoss]:
        """Loss without an update; one share per rank."""
        ...

    def logprobs(
        self, works: Sequence[Work], rollouts: Rollouts, temperature: float
    ) -> Answer[Fields]:
        """Log-probabilities of the response tokens under the current weights, nats."""
        ...

    def fetch(self, fields: Fields) -> Answer[list[TokenField]]:
        """Bring token fields to the driver: for the parity probe, a few tokens per sync."""
        ...

    def kl_sums(
        self, works: Sequence[Work], rollouts: Rollouts, old: Fields, reference: Fields
    ) -> Answer[list[SequenceField]]:
        """KL to the reference, k1 estimate, summed over each sequence, nats; one part per rank.

        If `old` has no shards, the log-probabilities of the rollouts are used instead.
        """
        ...

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
    ) -> Answer[Experience]:
        """Token rewards, advantages and returns; each rank builds and keeps its own share.

        If `old` has no shards, the log-probabilities of the rollouts are used instead; if `values`
        has none, there is no critic. `numbers` is what the estimator computed on the driver.
        """
        ...

    def update(
        self, steps: Sequence[list[PolicyStep]], experience: Experience, loss: PolicyLossSpec
    ) -> Answer[list[StepStats]]:
        """PPO steps in order; `steps[rank]` holds that rank's share of each."""
        ...

    def transfer_address(self, receivers: int, transport: str) -> GroupAddress:
        """Where rank 0 will wait for the engines to connect."""
        ...

    def connect(self, address: GroupAddress) -> Answer[None]:
        """Join the transfer group as its sender."""
        ...

    def publish_weights(self, version: int, transport: str) -> Answer[WeightOffer]:
        """Offer the current weights; a one-sided transport writes them at once."""
        ...

    def send_weights(self, offer: WeightOffer) -> Answer[WeightReceipt]:
        """Send an offer to the connected engines; all ranks take part in gathering."""
        ...


class Critic(Trainer, Protocol):
    """The trainers of scalar-head models: the reward model, then the value function."""

    def train_rankings(self, steps: Sequence[RankingStep]) -> Answer[StepStats]:
        """One optimizer step of the reward model."""
        ...

    def evaluate_rankings(self, steps: Sequence[RankingStep]) -> Answer[PairCounts]:
        """Held-out pairs ordered as labeled, and every score."""
        ...

    def score(self, batch: TokenBatch) -> Answer[FloatArray]:
        """Reward of whole sequences, (B,); every rank computes the same."""
        ...

    def shift_bias(self, mean: float) -> Answer[None]:
        """Lower every score by `mean`."""
        ...

    def values(self, works: Sequence[Work], rollouts: Rollouts) -> Answer[Fields]:
        """Value of the state before each response token."""
        ...

    def update(
        self, steps: Sequence[list[StepWork]], experience: Experience, value_clip: float
    ) -> Answer[list[StepStats]]:
        """Value-function steps in order."""
        ...


class Roles(Protocol):
    """The role groups of a run."""

    def bring_up(self, *names: RoleName) -> None:
        """Start the missing groups together; wait until trainers have formed process groups."""
        ...

    def release(self, *names: RoleName) -> None:
        """End those of these groups that are there; using one starts it again."""
        ...

    @property
    def rollout(self) -> Rollout:
        """The generation engines; a stage starts them on a checkpoint."""
        ...

    @property
    def reward(self) -> Reward:
        """The reward workers."""
        ...

    @property
    def reference(self) -> Reference:
        """The frozen language models."""
        ...

    @property
    def policy(self) -> Policy:
        """The policy's trainers."""
        ...

    @property
    def critic(self) -> Critic:
        """The scalar-head trainers."""
        ...

    def infos(self) -> list[RoleInfo]:
        """Role, rank, process and node of every worker that was started."""
        ...

    def replace_lost(self) -> list[str]:
        """End every group that lost a worker, to restart on its next use; returns lost workers.

        Raises:
            RoleDiedError: a worker has used up its restarts.
        """
        ...

    def abandon(self) -> None:
        """Have engines drop what they sample for steps that will be repeated."""
        ...

    def look_after(self) -> None:
        """Probe all workers; the driver calls this during its own long work."""
        ...

    def holds(self, name: RoleName) -> bool:
        """Whether the group exists and so still holds what was last loaded into it."""
        ...

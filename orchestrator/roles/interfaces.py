"""What the stages ask of the role groups: verbs, and the records that the verbs pass on.

The stages know these protocols and nothing of Ray. `orchestrator.roles` fulfils them with actors;
anything else that keeps the same promises can take their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from orchestrator.config.cluster import RoleName
from workers.data.rows.asked import Asked
from workers.records.arrays import FloatArray
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

WHOLE = Delivery()  # all sequences, all together

Ref = Any  # where a record lies; only the handles that made it can tell what it is


@dataclass(frozen=True, slots=True)
class Rollouts:
    """References to sequences, in shards as the engines made them, and their scalars."""

    shards: tuple[Ref, ...]  # of RolloutBatch
    summary: RolloutSummary


def joined(parts: Sequence[Rollouts]) -> Rollouts:
    """Several parts as one, in order."""
    names = RolloutSummary.__dataclass_fields__
    columns = [np.concatenate([getattr(p.summary, name) for p in parts]) for name in names]
    return Rollouts(tuple(s for p in parts for s in p.shards), RolloutSummary(*columns))


@dataclass(frozen=True, slots=True)
class Fields:
    """References to one number a token, one shard a rank."""

    shards: tuple[Ref, ...]  # of TokenField


@dataclass(frozen=True, slots=True)
class Experience:
    """References to sequences ready for PPO, one shard a critic rank, and their scalars."""

    shards: tuple[Ref, ...]  # of ExperienceBatch
    summaries: tuple[ExperienceSummary, ...]


class Answer(Protocol[T_co]):
    """A call that has started."""

    def result(self) -> T_co:
        """Wait for it; raises the typed error of the first rank that failed, died or was late."""
        ...


class Generation(Answer[Rollouts], Protocol):
    """A generation that has started; its sequences may come in several parts."""

    def parts(self) -> Iterator[Rollouts]:
        """Each part as soon as it is there, then no more; may be asked again.

        Raises the typed error of the first engine that failed, died or was late.
        """
        ...


class Rollout(Protocol):
    """n independent generation engines."""

    @property
    def ranks(self) -> list[int]:
        """Engines that calls go to; one that is being started again is not among them."""
        ...

    def start(self, spec: RolloutSpec, version: int) -> Answer[list[RoleInfo]]:
        """Build the engines on a checkpoint's weights, admitted as `version`."""
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
        """Give the engines' GPU memory to other roles, if the spec says so and none samples.

        They wake by themselves for whatever needs them next.
        """
        ...

    def pause(self) -> Answer[None]:
        """Interrupt all generations, between two steps of each engine, until `resume`."""
        ...

    def resume(self, version: int) -> None:
        """Let interrupted generations go on under `version`, which the engines have admitted."""
        ...

    def hold(self, batch: RolloutBatch) -> Rollouts:
        """Sequences of an earlier process, as if engines had just made them: one shard."""
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

    def receive_weights(self, offer: WeightOffer) -> Answer[list[WeightReceipt]]:
        """Take an offered transfer; the engines stay unverified until admitted."""
        ...

    def probe(
        self, prompts: list[tuple[int, ...]], max_tokens: int, temperature: float, version: int
    ) -> Answer[Rollouts]:
        """Sample a few tokens on every engine, one shard each; serves unverified weights."""
        ...

    def admit(self, version: int) -> Answer[None]:
        """Let the engines serve `version`."""
        ...

    # Brings one engine that was made anew to the version that its peers serve; None while nobody
    # holds these weights any more.
    refresh: Callable[[int, int], None] | None

    def replace_lost(self) -> list[str]:
        """Leave out engines that died or hang, and have them started again; names them."""
        ...

    def join(self) -> None:
        """Take back engines that stand again; all are about to be given the same weights."""
        ...

    def receive_alone(self, rank: int, offer: WeightOffer) -> WeightReceipt:
        """Like `receive_weights`, of one engine."""
        ...

    def probe_alone(
        self,
        rank: int,
        prompts: list[tuple[int, ...]],
        max_tokens: int,
        temperature: float,
        version: int,
    ) -> Rollouts:
        """Like `probe`, of one engine."""
        ...

    def admit_alone(self, rank: int, version: int) -> None:
        """Like `admit`, of one engine."""
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
        """One score or recorded failure a sequence, in the order of the summary.

        Args:
            rollouts: The sequences.
            asked: Their prompts in words, where the reward reads words.
        """
        ...

    def score_batch(self, batch: RolloutBatch, asked: Sequence[Asked] = ()) -> Answer[Scores]:
        """Like `score`, of sequences that the driver holds."""
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
        """Log-probabilities of the response tokens, nats; one work a replica."""
        ...

    def fetch(self, fields: Fields) -> Answer[list[TokenField]]:
        """Bring token fields to the driver: for the parity probe, a few tokens a model."""
        ...

    def row_losses(self, batches: Sequence[TokenBatch]) -> Answer[list[FloatArray]]:
        """Summed loss of each row's targets, (B,) nats; one batch a replica."""
        ...


class Saver(Protocol):
    """Has state that belongs into a checkpoint of the run."""

    def snapshot(self, folder: str) -> Answer[None]:
        """Copy the state; it is written into `folder` while training goes on."""
        ...

    def written(self) -> Answer[list[FileRecord]]:
        """The files of the last snapshot, once they are whole."""
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
        """Give GPU memory to engines that are about to sample, if the group's spec says so.

        The ranks take it back by themselves with the next update.
        """
        ...

    def restore(self, folder: str) -> Answer[None]:
        """Go on from a snapshot, right after `load`."""
        ...


class Policy(Trainer, Protocol):
    """The policy's trainers."""

    def shares_rows(self) -> Answer[bool]:
        """Whether documents may share a row under the loaded model without seeing each other."""
        ...

    def train_supervised(self, steps: Sequence[SupervisedStep]) -> Answer[StepStats]:
        """One optimizer step on next-token loss; one share a rank."""
        ...

    def evaluate_supervised(self, steps: Sequence[SupervisedStep]) -> Answer[TextLoss]:
        """Loss without an update; one share a rank."""
        ...

    def logprobs(
        self, works: Sequence[Work], rollouts: Rollouts, temperature: float
    ) -> Answer[Fields]:
        """Log-probabilities of the response tokens under the current weights, nats."""
        ...

    def fetch(self, fields: Fields) -> Answer[list[TokenField]]:
        """Bring token fields to the driver: for the parity probe, a few tokens a sync."""
        ...

    def update(
        self, steps: Sequence[list[PolicyStep]], experience: Experience, loss: PolicyLossSpec
    ) -> Answer[list[StepStats]]:
        """PPO steps in order; `steps[rank]` holds that rank's share of each."""
        ...

    def transfer_address(self, receivers: int, backend: str) -> GroupAddress:
        """Where rank 0 will wait for the engines of a gloo or nccl transfer."""
        ...

    def connect(self, address: GroupAddress) -> Answer[None]:
        """Join the transfer group as its sender."""
        ...

    def publish_weights(self, version: int, transport: str) -> Answer[WeightOffer]:
        """Offer the current weights; through shared memory they are written at once."""
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

    def build_experience(
        self,
        works: Sequence[Work],
        rollouts: Rollouts,
        old: Fields,
        reference: Fields,
        values: Fields,
        scores: Scores,
        shaping: ShapingSpec,
    ) -> Answer[Experience]:
        """Token rewards, advantages and returns; each rank builds and keeps its own share.

        Without a shard of `old` the log-probabilities of the rollouts stand for them.
        """
        ...

    def update(
        self, steps: Sequence[list[StepWork]], experience: Experience, value_clip: float
    ) -> Answer[list[StepStats]]:
        """Value-function steps in order."""
        ...


class Roles(Protocol):
    """The role groups of a run."""

    def bring_up(self, *names: RoleName) -> None:
        """Make the missing groups, all at the same time, and wait until they stand."""
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
        """Role, rank, process and node of every worker that was made."""
        ...

    def replace_lost(self) -> list[str]:
        """End every group that lost a worker, to be made anew on its next use; names the lost.

        Raises:
            RoleDiedError: one of them has used up its restarts.
        """
        ...

    def abandon(self) -> None:
        """Have engines drop what they sample for steps that will be done again."""
        ...

    def look_after(self) -> None:
        """Look for signs of life of all workers; for the driver while its own work takes long."""
        ...

    def holds(self, name: RoleName) -> bool:
        """Whether the group is there, with what it was last given."""
        ...

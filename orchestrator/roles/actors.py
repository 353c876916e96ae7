"""Ray actor classes of the roles: each adds to a worker class what only Ray needs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import ray
from ray.exceptions import GetTimeoutError

from orchestrator.roles.interfaces import Ref
from workers.data.rows.asked import Asked
from workers.errors import DeadlineError
from workers.process.call_timing import fetching, timed_verbs
from workers.process.heartbeat import Pulse, pulse, stacks, traced
from workers.records.generation import GenerationCall, RolloutBatch, RolloutSummary
from workers.records.specs import PolicyLossSpec, ShapingSpec
from workers.records.training import (
    ExperienceBatch,
    ExperienceSummary,
    PolicyStep,
    Scores,
    SequenceField,
    StepStats,
    StepWork,
    TokenField,
    Work,
)
from workers.roles.critic import CriticWorker
from workers.roles.policy import PolicyWorker
from workers.roles.reference import ReferenceWorker
from workers.roles.reward import RewardWorker
from workers.roles.rollout import RolloutWorker

T = TypeVar("T")


def _fetch(refs: Sequence[Ref]) -> list[Any]:
    """Fetch records inside an actor; those on the same node are read from shared memory."""
    try:
        with fetching():
            return ray.get(list(refs), timeout=_FETCH_SECONDS)
    except GetTimeoutError as error:
        raise DeadlineError(
            f"records of other roles did not arrive within {_FETCH_SECONDS:.0f} s",
            fix="check the network between the nodes and the object store's size",
        ) from error


_FETCH_SECONDS = 600.0


# Verbs in these concurrency groups run at the same time as all other verbs, which run in turn.
CONTROL, HEALTH = "control", "health"
_BESIDE = ("interrupt", "pause", "tell", "announce", "announce_ahead")


def _vital(worker: type[T]) -> type[T]:
    """Trace a worker's verbs, and add `pulse` and `stacks`, which a separate thread answers."""
    for name, member in inspect.getmembers(worker, inspect.isfunction):
        if not name.startswith("_") and name not in _BESIDE:
            setattr(worker, name, traced(name, member))
    health = ray.method(concurrency_group=HEALTH)
    setattr(worker, "pulse", health(_pulse))  # noqa: B010
    setattr(worker, "stacks", health(_stacks))  # noqa: B010
    return worker


def _pulse(_: Any) -> Pulse:
    return pulse()


def _stacks(_: Any) -> str:
    return stacks()


# Each answer carries the times when its call ran; the driver's time account removes them.
_timed = timed_verbs(lambda verb: getattr(verb, "__ray_num_returns__", 1))

# Verbs that produce token data return two objects: the data, which stays on its node until a worker
# fetches it, and a small record, which is all that the driver fetches.


@_vital
@_timed
class RolloutActor(RolloutWorker):
    """A rollout engine as a Ray actor."""

    @ray.method(num_returns="streaming")
    def generate_shards(self, call: GenerationCall) -> Iterator[RolloutBatch | RolloutSummary]:
        for batch in self.generate_parts(call):
            yield batch
            yield batch.summary()

    @ray.method(num_returns="streaming")
    def proceed_shards(self, call: int, version: int) -> Iterator[RolloutBatch | RolloutSummary]:
        for batch in self.proceed(call, version):
            yield batch
            yield batch.summary()

    @ray.method(concurrency_group=CONTROL)
    def interrupt(self) -> None:
        self.pause()

    @ray.method(concurrency_group=CONTROL, num_returns=0)
    def announce_ahead(self, call: GenerationCall) -> None:
        # Not self.announce: its reply would carry the running call's times, and nobody reads it.
        super().announce(call)

    @ray.method(concurrency_group=CONTROL)
    def tell(self) -> None:
        """Do nothing; the reply carries the times of a running generation so far."""

    @ray.method(num_returns=2)
    def probe_shard(
        self, prompts: list[tuple[int, ...]], max_tokens: int, temperature: float, version: int
    ) -> tuple[RolloutBatch, RolloutSummary]:
        batch = self.probe(prompts, max_tokens, temperature, version)
        ids = np.arange(len(batch), dtype=np.int64) + self.rank * len(batch)
        batch = replace(batch, ids=ids)  # unique across engines
        return batch, batch.summary()


@_vital
@_timed
class RewardActor(RewardWorker):
    """A scorer of sequences as a Ray actor."""

    def score_shards(
        self, ids: np.ndarray, shards: Sequence[Ref], asked: Sequence[Asked]
    ) -> Scores:
        return self.score(ids, _fetch(shards), asked)


@_vital
@_timed
class ReferenceActor(ReferenceWorker):
    """A frozen language model as a Ray actor."""

    @ray.method(num_returns=2)
    def logprobs_of(
        self, work: Work, shards: Sequence[Ref], temperature: float
    ) -> tuple[TokenField, None]:
        return self.logprobs(work, _fetch(shards), temperature), None


@_vital
@_timed
class PolicyActor(PolicyWorker):
    """A rank of the policy's trainer as a Ray actor."""

    @ray.method(num_returns=2)
    def logprobs_of(
        self, work: Work, shards: Sequence[Ref], temperature: float
    ) -> tuple[TokenField, None]:
        return self.logprobs(work, _fetch(shards), temperature), None

    @ray.method(num_returns=2)
    def build_experience_of(
        self,
        work: Work,
        rollouts: Sequence[Ref],
        old: Sequence[Ref],
        reference: Sequence[Ref],
        values: Sequence[Ref],
        scores: Scores,
        shaping: ShapingSpec,
        numbers: SequenceField | None,
    ) -> tuple[ExperienceBatch, ExperienceSummary]:
        inputs = (_fetch(rollouts), _fetch(old), _fetch(reference), _fetch(values))
        return self.build_experience(work, *inputs, scores, shaping, numbers)

    def kl_sums_of(
        self, work: Work, rollouts: Sequence[Ref], old: Sequence[Ref], reference: Sequence[Ref]
    ) -> SequenceField:
        return self.kl_sums(work, _fetch(rollouts), _fetch(old), _fetch(reference))

    def update_on(
        self, steps: list[PolicyStep], shards: Sequence[Ref], loss: PolicyLossSpec
    ) -> list[StepStats]:
        return self.update(steps, _fetch(shards), loss)


@_vital
@_timed
class CriticActor(CriticWorker):
    """A rank of the critic's trainer as a Ray actor."""

    @ray.method(num_returns=2)
    def values_of(self, work: Work, shards: Sequence[Ref]) -> tuple[TokenField, None]:
        return self.values(work, _fetch(shards)), None

    def update_on(
        self, steps: list[StepWork], shards: Sequence[Ref], value_clip: float
    ) -> list[StepStats]:
        return self.update(steps, _fetch(shards), value_clip)

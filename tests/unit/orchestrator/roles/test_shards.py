"""A rank fetches only the shards that hold sequences of its work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes.backend import LocalBackend

from orchestrator.roles.group import Launch
from orchestrator.roles.interfaces import Fields, Rollouts, joined
from orchestrator.roles.scorer_groups import RewardGroup
from orchestrator.roles.trainer_groups import CriticGroup, PolicyGroup
from orchestrator.supervision.pending import Position
from workers.errors import LedgerError
from workers.records.arrays import Ragged
from workers.records.gather import gather_rollouts
from workers.records.generation import Finish, RolloutBatch
from workers.records.specs import PartSpec, PolicyLossSpec, ShapingSpec
from workers.records.training import (
    ExperienceBatch,
    PolicyStep,
    Scores,
    StepStats,
    StepWork,
    TokenField,
    Work,
)
from workers.roles.policy import PolicyWorker


class Worker(PolicyWorker):
    """Has no model; each of its verbs needs every sequence of its share."""

    def logprobs(self, work: Work, shards: list[RolloutBatch], temperature: float) -> TokenField:
        found = gather_rollouts(shards, work.ids)
        return TokenField(found.ids, found.logprobs)

    def values(self, work: Work, shards: list[RolloutBatch]) -> TokenField:
        return self.logprobs(work, shards, 1.0)

    def score(self, ids: np.ndarray, shards: list[RolloutBatch], asked: object) -> Scores:
        found = gather_rollouts(shards, ids)
        return Scores(found.ids, found.ids.astype(np.float32), ("",) * len(ids))

    def update(self, steps: list[Any], shards: list[ExperienceBatch], _: Any) -> list[StepStats]:
        return []


def sequences(*ids: int) -> RolloutBatch:
    n = len(ids)
    return RolloutBatch(
        np.array(ids), np.array(ids), Ragged.from_rows([[1, 2]] * n, np.int32),
        np.ones(n, np.int64),
        Ragged.from_rows([[-float(i)] for i in ids], np.float32), np.full(n, Finish.STOP),
        np.zeros((n, 2), np.int64),
    )  # fmt: skip


@pytest.fixture
def backend() -> LocalBackend:
    return LocalBackend(lambda _, rank: Worker(rank))


@pytest.fixture
def rollouts(backend: LocalBackend) -> Rollouts:
    """Three shards: 1 and 2, 3 and 4, 5 and 6."""
    shards = [sequences(1, 2), sequences(3, 4), sequences(5, 6)]
    return joined([Rollouts.of(backend.put(each), each.summary()) for each in shards])


def group(kind: Any, backend: LocalBackend, ranks: int) -> Any:
    return kind(Launch(backend, lambda _: {}, ranks, 9.0, 9.0, Position("ppo", 3)))


def works(*shares: list[int]) -> list[Work]:
    return [Work((np.array(share, np.int64),)) for share in shares]


def fetched(backend: LocalBackend, verb: str) -> list[tuple[int, list[list[int]]]]:
    """Rank, and the ids in each of the shards that it has fetched for one argument."""
    return [
        (worker.rank, [each.ids.tolist() for each in records])
        for worker, name, records in backend.fetched
        if name == verb
    ]


def test_passes_fetch_the_shards_of_their_share(backend: LocalBackend, rollouts: Rollouts) -> None:
    shares = works([6, 1], [3, 4])
    fields = group(CriticGroup, backend, 2).values(shares, rollouts).result()
    assert fetched(backend, "values") == [(0, [[1, 2], [5, 6]]), (1, [[3, 4]])]
    assert [backend.get(ref, 0).values.values.tolist() for ref in fields.shards] == [
        [-6.0, -1.0], [-3.0, -4.0],
    ]  # fmt: skip
    assert [ids.tolist() for ids in fields.held] == [[6, 1], [3, 4]]


def test_a_replica_fetches_what_it_scores(backend: LocalBackend, rollouts: Rollouts) -> None:
    scores = group(RewardGroup, backend, 3).score(rollouts).result()
    assert fetched(backend, "score") == [
        (0, [[1, 2], [3, 4]]), (1, [[1, 2], [5, 6]]), (2, [[3, 4], [5, 6]]),
    ]  # fmt: skip
    assert scores.values.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_a_share_without_sequences_gets_one_shard(
    backend: LocalBackend, rollouts: Rollouts
) -> None:
    fields = group(PolicyGroup, backend, 2).logprobs(works([2], []), rollouts, 1.0).result()
    assert fetched(backend, "logprobs") == [(0, [[1, 2]]), (1, [[1, 2]])]
    assert [len(backend.get(ref, 0).ids) for ref in fields.shards] == [1, 0]


def test_a_sequence_that_no_shard_holds_is_an_error(
    backend: LocalBackend, rollouts: Rollouts
) -> None:
    with pytest.raises(LedgerError, match="no rollout for sequences 7"):
        group(PolicyGroup, backend, 1).logprobs(works([7]), rollouts, 1.0).result()


def test_experience_is_built_from_and_trained_on_shards_of_the_share(
    backend: LocalBackend, rollouts: Rollouts
) -> None:
    policy = group(PolicyGroup, backend, 2)
    reference = policy.logprobs(works([1, 5], [2, 3]), rollouts, 1.0).result()
    values = policy.logprobs(works([3, 2], [1, 5]), rollouts, 1.0).result()
    backend.fetched.clear()
    scores = Scores(np.array([1, 2, 3]), np.zeros(3, np.float32), ("",) * 3)
    experience = policy.build_experience(
        works([1], [3, 2]), rollouts, Fields((), ()), reference, values, scores,
        ShapingSpec(0.1, 1.0, 0.95, PartSpec("gae")),
    ).result()  # fmt: skip
    assert fetched(backend, "build_experience") == [
        (0, [[1, 2]]), (0, [[1, 5]]), (0, [[1, 5]]),
        (1, [[1, 2], [3, 4]]), (1, [[2, 3]]), (1, [[3, 2]]),
    ]  # fmt: skip
    steps = [[PolicyStep(StepWork(work, 1, 1))] for work in works([3], [2, 1])]
    policy.update(steps, experience, PolicyLossSpec(0.2, 1.0, 0.0, 1.0, 0.0)).result()
    assert fetched(backend, "update") == [(0, [[3, 2]]), (1, [[1], [3, 2]])]
    fitting = [[each.ppo for each in own] for own in steps]
    backend.fetched.clear()
    group(CriticGroup, backend, 2).update(fitting, experience, 0.2).result()
    assert fetched(backend, "update") == [(0, [[3, 2]]), (1, [[1], [3, 2]])]

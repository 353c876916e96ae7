"""vLLM engines that are killed in the middle of their work: the other one does it, alike."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from test_workers import SAMPLING, World, working

from orchestrator.config.engines import RolloutConfig, RolloutEngine
from workers.records.generation import Delivery, GenerationRequest, RolloutBatch

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

PARTS = Delivery(part_sequences=16)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    engines = RolloutConfig(
        engine=RolloutEngine.vllm, max_concurrent_sequences=8, max_response_tokens=48,
        inflight_updates=True, join_running=True,
    )  # fmt: skip
    with working(tmp_path_factory.mktemp("engines"), engines) as world:
        yield world


def ask(first: int) -> list[GenerationRequest]:
    """Sequences with ids of their own, and the seeds that every call has."""
    return [
        GenerationRequest(n, (1, 3 + n), (first + 2 * n, first + 2 * n + 1), (7 * n, 7 * n + 1))
        for n in range(64)
    ]


def by_id(batch: RolloutBatch) -> dict[int, list[int]]:
    assert len(set(batch.ids.tolist())) == len(batch)  # none twice
    return {int(i) % 1000: row.tolist() for i, row in zip(batch.ids, batch.tokens.rows())}  # noqa: B905


@pytest.fixture(scope="module")
def calm(world: World) -> dict[int, list[int]]:
    rollout = world.fleet.rollout
    return by_id(rollout.fetch(rollout.generate(ask(0), SAMPLING, 2).result()).result())


def test_batches_that_join_are_all_done_by_the_other_engine(
    world: World, calm: dict[int, list[int]]
) -> None:
    rollout = world.fleet.rollout
    open_calls = [rollout.generate(ask(first), SAMPLING, 2, PARTS) for first in (1000, 2000)]
    time.sleep(0.3)
    world.strike("rollout", 1, signal.SIGKILL)
    for call in open_calls:
        assert by_id(rollout.fetch(call.result()).result()) == calm
    assert rollout.ranks == [0]


def test_and_so_is_one_that_goes_on_under_newer_weights(
    world: World, calm: dict[int, list[int]]
) -> None:
    rollout = world.fleet.rollout
    world.await_standing(1)
    world.sync.run(3)
    assert rollout.ranks == [0, 1]
    call = rollout.generate(ask(3000), SAMPLING, 3, PARTS)
    time.sleep(0.3)
    world.sync.policy_moves()
    world.strike("rollout", 0, signal.SIGKILL)
    world.sync.run(4)
    assert rollout.ranks == [1]
    found = rollout.fetch(call.result()).result()
    assert sorted(by_id(found)) == sorted(calm)
    assert set(found.versions.ravel().tolist()) <= {3, 4}
    assert world.losses == ["rollout rank 1", "rollout rank 0"]

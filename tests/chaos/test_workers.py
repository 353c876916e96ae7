"""Real worker processes that are killed or stopped: what their groups answer stays the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from orchestrator.cluster.ray_cluster import start_cluster
from orchestrator.config.cluster import ClusterConfig, EngineResources, RoleName, RolesConfig
from orchestrator.config.engines import OptimizerConfig, RolloutConfig, RolloutEngine
from orchestrator.config.reward import RewardConfig
from orchestrator.config.run import SupervisionConfig
from orchestrator.config.schema import Config
from orchestrator.planning.placement import place_roles
from orchestrator.planning.worker_specs import reward_spec, rollout_spec, train_spec
from orchestrator.roles.fleet import Fleet
from orchestrator.roles.interfaces import Rollouts
from orchestrator.roles.weight_sync import WeightSync
from orchestrator.supervision.pending import Position
from orchestrator.telemetry.role_time import Account
from workers.data.rows.asked import Asked
from workers.errors import RoleDiedError
from workers.pocket.model import create_model
from workers.records.generation import GenerationRequest, RolloutBatch, Sampling

pytestmark = pytest.mark.chaos

EOS = 2
INTERVAL = 2.0
SAMPLING = Sampling(temperature=0.8, max_tokens=48)
PROBE = [(1, 5, 9), (1, 6)]


@dataclass
class World:
    fleet: Fleet
    config: Config
    folder: Path
    sync: WeightSync
    version: int
    losses: list[str]

    def pid(self, role: str, rank: int = 0) -> int:
        (pid,) = [i.pid for i in self.fleet.infos() if (i.role, i.rank) == (role, rank)]
        return pid

    def strike(self, role: str, rank: int, number: signal.Signals) -> int:
        pid = self.pid(role, rank)
        own = {p.pid for p in psutil.Process().children(recursive=True)}
        assert pid in own, "only what this test started"
        os.kill(pid, number)
        return pid

    def ask(self) -> Iterator[GenerationRequest]:
        for n in range(64):  # half a second of an idle core's work: more than a kill waits for
            yield GenerationRequest(n, (1, 3 + n), (2 * n, 2 * n + 1), (7 * n, 7 * n + 1))

    def await_standing(self, rank: int) -> None:
        until = time.monotonic() + 120
        while rank not in self.fleet.rollout._returning.standing:
            assert time.monotonic() < until, "it does not start"
            self.fleet.watch.tick()
            time.sleep(0.02)

    def generate(self) -> tuple[Rollouts, RolloutBatch]:
        rollout = self.fleet.rollout
        rollouts = rollout.generate(list(self.ask()), SAMPLING, self.version).result()
        return rollouts, rollout.fetch(rollouts).result()


def config(folder: Path, rollout: RolloutConfig) -> Config:
    roles = RolesConfig(rollout=EngineResources(workers=2))
    built = Config(
        rollout=rollout,
        reward=RewardConfig(kind="function", function="slow_reward:long_words"),
        cluster=ClusterConfig(cpus_per_node=2, object_store_mib=96, roles=roles),
    )
    built.run.dir = str(folder / "run")
    built.run.supervision = SupervisionConfig(probe_seconds=INTERVAL, max_restarts=4)
    return built


@contextmanager
def working(folder: Path, rollout: RolloutConfig) -> Iterator[World]:
    """Two engines that hold a policy's weights as version 2."""
    (folder / "run").mkdir()
    create_model(
        folder / "sft", hidden_size=64, layers=2, heads=2, kv_heads=2, intermediate_size=96,
        max_position_embeddings=128, tie_word_embeddings=True, seed=1,
    )  # fmt: skip
    built, position, losses = config(folder, rollout), Position(), []
    layout = place_roles(built.cluster, list(RoleName))
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", here)  # workers import the reward that lies beside
        with start_cluster(built.cluster, layout, 240.0) as cluster:
            fleet = Fleet(built, cluster, position, Account())
            fleet._lost = lambda worker, *_: losses.append(worker)  # type: ignore[method-assign]
            fleet.bring_up(RoleName.rollout, RoleName.policy)
            starting = fleet.rollout.start(rollout_spec(built, str(folder / "sft"), EOS), 1)
            optimizer = OptimizerConfig(learning_rate=1e-2)
            fleet.policy.load(
                train_spec(built, str(folder / "sft"), optimizer, 10, threads=1)
            ).result()
            starting.result()
            sync = WeightSync(fleet.policy, fleet.rollout, built.rollout, PROBE, 512)
            sync.run(2)
            yield World(fleet, built, folder, sync, 2, losses)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    engines = RolloutConfig(
        engine=RolloutEngine.transformers, max_concurrent_sequences=8, max_response_tokens=48
    )
    with working(tmp_path_factory.mktemp("chaos"), engines) as world:
        yield world


@pytest.fixture(scope="module")
def calm(world: World) -> RolloutBatch:
    return world.generate()[1]


def same(found: RolloutBatch, calm: RolloutBatch) -> None:
    assert found.ids.tolist() == calm.ids.tolist()  # each once, none lost
    assert found.tokens.values.tolist() == calm.tokens.values.tolist()
    np.testing.assert_array_equal(found.logprobs.values, calm.logprobs.values)
    assert len({*found.versions.ravel().tolist()}) == 1


def test_an_engine_killed_while_it_generates(world: World, calm: RolloutBatch) -> None:
    world.losses.clear()
    rollout = world.fleet.rollout
    generating = rollout.generate(list(world.ask()), SAMPLING, world.version)
    time.sleep(0.05)
    killed = world.strike("rollout", 1, signal.SIGKILL)
    same(rollout.fetch(generating.result()).result(), calm)
    assert world.losses == ["rollout rank 1"]
    assert rollout.ranks == [0]  # did the work of both
    world.await_standing(1)
    world.version += 1
    world.sync.run(world.version)
    assert rollout.ranks == [0, 1]
    assert world.pid("rollout", 1) != killed
    again = world.generate()[1]
    assert again.tokens.values.tolist() == calm.tokens.values.tolist()


def test_an_engine_killed_before_a_sync_is_left_out_until_the_next(
    world: World, calm: RolloutBatch
) -> None:
    world.losses.clear()
    world.strike("rollout", 0, signal.SIGKILL)
    world.version += 1
    report = world.sync.run(world.version)
    assert report.version == world.version
    assert report.parity.max_difference < 1e-4
    assert world.losses == ["rollout rank 0"]
    assert world.fleet.rollout.ranks == [1]
    world.await_standing(0)
    found = world.generate()[1]  # the policy has not moved: it may join here
    assert world.fleet.rollout.ranks == [0, 1]
    assert found.tokens.values.tolist() == calm.tokens.values.tolist()
    assert {*found.versions.ravel().tolist()} == {world.version}


@pytest.mark.slow
def test_a_stopped_engine_is_condemned_within_three_intervals(
    world: World, calm: RolloutBatch
) -> None:
    world.losses.clear()
    life = world.fleet.watch.life("rollout rank 1")
    stopped = world.strike("rollout", 1, signal.SIGSTOP)
    began = time.monotonic()
    while life.serves and time.monotonic() < began + 60:
        world.fleet.watch.tick()
        time.sleep(0.02)
    assert time.monotonic() - began < 3 * INTERVAL + 1.0
    found = world.generate()[1]
    assert found.tokens.values.tolist() == calm.tokens.values.tolist()
    assert world.losses == ["rollout rank 1"]
    psutil.wait_procs([psutil.Process(stopped)] if psutil.pid_exists(stopped) else [], timeout=30)
    assert not psutil.pid_exists(stopped)


@pytest.mark.slow
def test_a_reward_worker_killed_while_it_scores(world: World, calm: RolloutBatch) -> None:
    reward = world.fleet.reward
    reward.load(reward_spec(world.config, "", str(world.folder / "sft"))).result()
    asked = [Asked(number, "a question", "a question") for number in calm.prompt_ids.tolist()]
    before = reward.score_batch(calm, asked).result()
    scoring = reward.score_batch(calm, asked)
    world.strike("reward", 0, signal.SIGKILL)
    after = scoring.result()
    np.testing.assert_array_equal(after.values, before.values)
    assert after.failures == ("",) * len(calm)


@pytest.mark.slow
def test_a_worker_that_dies_too_often_ends_the_run(world: World) -> None:
    reward = world.fleet.reward
    spec = reward_spec(world.config, "", str(world.folder / "sft"))

    def wear_out() -> None:
        for _ in range(world.config.run.supervision.max_restarts + 1):
            reward.load(spec).result()
            world.strike("reward", 0, signal.SIGKILL)

    with pytest.raises(RoleDiedError, match="reward rank 0 is not restarted again"):
        wear_out()

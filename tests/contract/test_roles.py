"""What the stages may rely on, the same for Ray's actors and for toy workers in this process."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from fakes import FakeRoles, Hub, ToyPolicy, ToyScalar

from orchestrator.batching import training_batches
from orchestrator.batching.training_batches import StepPlan
from orchestrator.cluster.ray_cluster import start_cluster
from orchestrator.config.cluster import ClusterConfig, RoleName, RoleResources, RolesConfig
from orchestrator.config.engines import OptimizerConfig, RolloutConfig, Schedule
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.placement import place_roles
from orchestrator.planning.worker_specs import (
    frozen_spec,
    reward_spec,
    role_environment,
    rollout_spec,
    train_spec,
)
from orchestrator.roles.fleet import Fleet
from orchestrator.roles.group import Launch
from orchestrator.roles.interfaces import Answer, Experience, Fields, Rollouts
from orchestrator.roles.roles import Roles
from orchestrator.roles.scorer_groups import RewardGroup
from orchestrator.roles.weight_sync import WeightSync, compare_logprobs
from orchestrator.supervision.pending import Position
from orchestrator.supervision.ray_backend import RayBackend
from orchestrator.telemetry.role_time import Account
from workers.data.batches import demonstration_batch
from workers.errors import (
    DeadlineError,
    LedgerError,
    MissingCheckpointError,
    RehearsalError,
    RoleDiedError,
    RoleError,
    StaleEngineError,
    WeightSyncError,
)
from workers.pocket.model import create_model
from workers.records.arrays import Ragged
from workers.records.gather import gather_fields
from workers.records.generation import Delivery, Finish, GenerationRequest, RolloutBatch, Sampling
from workers.records.processes import RoleInfo
from workers.records.specs import (
    FrozenModelSpec,
    PartSpec,
    PolicyLossSpec,
    RewardSpec,
    ShapingSpec,
    TrainModelSpec,
)
from workers.records.training import Ranking, Scores, TokenBatch
from workers.training.whitening import whitening_moments

EOS = 2
SAMPLING = Sampling(temperature=0.8, max_tokens=12)
BUDGET = 48  # padded tokens of a micro-batch: several of them, uneven over ranks
PROMPTS = [(1, 5, 9), (1, 6), (1, 7, 7, 7), (1, 12, 8), (1, 30)]


@dataclass
class World:
    """Five groups, and the checkpoints that they can load."""

    roles: Roles
    config: Config
    position: Position
    folder: Path  # base, sft, reward_model
    hurried: RewardGroup  # a group of its own, whose calls have no time at all
    end_hurried: Callable[[], None]  # ends its process
    version: int = 1
    next_id: int = 0
    sync: WeightSync | None = field(default=None)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def train_spec(self, name: str, head: str = "keep") -> TrainModelSpec:
        optimizer = OptimizerConfig(learning_rate=1e-2, schedule=Schedule.constant)
        return train_spec(self.config, self.path(name), optimizer, 100, threads=1, head=head)

    def frozen_spec(self, name: str) -> FrozenModelSpec:
        return frozen_spec(self.config, self.path(name), StageName.ppo, RoleName.reference)

    def reward_spec(self) -> RewardSpec:
        return reward_spec(self.config, self.path("reward_model"), self.path("sft"))

    def serve(self, name: str) -> int:
        """Let the engines serve a checkpoint under a new version."""
        self.version += 1
        self.roles.rollout.load_checkpoint(self.path(name), self.version).result()
        return self.version

    def requests(self, samples: int, seed: int = 0) -> list[GenerationRequest]:
        found = []
        for n, prompt in enumerate(PROMPTS):
            ids = tuple(range(self.next_id, self.next_id + samples))
            self.next_id += samples
            found.append(
                GenerationRequest(n, prompt, ids, tuple(seed + 100 * n + k for k in range(samples)))
            )
        return found

    def sample(self, name: str = "sft", samples: int = 3) -> tuple[Rollouts, RolloutBatch]:
        version = self.serve(name)
        rollout = self.roles.rollout
        rollouts = rollout.generate(self.requests(samples), SAMPLING, version).result()
        return rollouts, rollout.fetch(rollouts).result()

    def works(self, rollouts: Rollouts, ranks: int, ids: np.ndarray | None = None) -> list:
        summary = rollouts.summary
        ids = summary.ids if ids is None else ids
        lengths = summary.prompt_lengths + summary.response_lengths
        return training_batches.equal_work(ids, lengths[np.isin(summary.ids, ids)], ranks, BUDGET)

    def fetch(self, fields: Fields, ids: np.ndarray) -> Ragged:
        return gather_fields(self.roles.policy.fetch(fields).result(), ids).values


def make_config() -> Config:
    config = Config(
        rollout=RolloutConfig(kv_cache_mib=16, max_concurrent_sequences=32, temperature=0.8),
        cluster=ClusterConfig(
            cpus_per_node=2, object_store_mib=96, roles=RolesConfig(policy=RoleResources(workers=2))
        ),
    )
    # On a CPU vLLM only goes through the motions, and deepspeed copies masters within the host.
    config.rollout.sleep = config.trainer.rest_on_host = True
    config.run.role_start_seconds = 240.0
    config.run.call_seconds = 120.0
    return config


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("fakes")
    for seed, name in enumerate(("base", "sft")):
        ToyPolicy.create(40, seed).save(folder / name)
    ToyScalar.create(40, 5).save(folder / "reward_model")
    ToyPolicy.create(40, 6, layers=3).save(folder / "deeper")
    config, hurried, hub = make_config(), make_config(), Hub()
    hurried.run.call_seconds = 1e-4
    spare = Hub(hub.position)
    spare.faults.late.add("reward.score")
    roles = FakeRoles(hub, config, rollout=2, reward=2, reference=2, policy=2, critic=2)
    world = World(
        roles, config, hub.position, folder, FakeRoles(spare, hurried).reward,
        lambda: spare.faults.dead.add("reward.load"),
    )  # fmt: skip
    _start(world).result()
    return world


@pytest.fixture(scope="module")
def ray_actors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One cluster with two CPUs declared, and one process a worker, for all tests here."""
    folder = tmp_path_factory.mktemp("ray_actors")
    for seed, name in enumerate(("base", "sft", "deeper")):
        create_model(
            folder / name, hidden_size=64, layers=3 if name == "deeper" else 2, heads=2,
            kv_heads=2, intermediate_size=96,
            max_position_embeddings=96, tie_word_embeddings=True, seed=seed,
        )  # fmt: skip
    config, position = make_config(), Position()
    env = {"env_vars": role_environment(config.cluster, RoleName.reward)}
    options = {"num_cpus": 0, "runtime_env": env}
    layout = place_roles(config.cluster, list(RoleName))
    with start_cluster(config.cluster, layout, 60.0) as cluster:
        config.run.dir = str(folder / "run")
        (folder / "run").mkdir()
        fleet = Fleet(config, cluster, position, Account())
        hurried = RewardGroup(Launch(RayBackend(), lambda _: options, 1, 240.0, 1e-4, position))
        world = World(
            fleet, config, position, folder, hurried,
            lambda: os.kill(hurried.infos[0].pid, signal.SIGKILL),
        )  # fmt: skip
        starting = _start(world)  # the slowest, and all start at the same time
        fleet.bring_up(*RoleName)
        fleet.critic.load(world.train_spec("sft", "random")).result()
        fleet.critic.save(world.path("reward_model"), world.path("sft")).result()
        starting.result()
        yield world


def _start(world: World) -> Answer[list[RoleInfo]]:
    spec = rollout_spec(world.config, world.path("base"), EOS)
    return world.roles.rollout.start(spec, world.version)


@pytest.fixture(params=["fakes", "ray_actors"])
def world(request: pytest.FixtureRequest) -> World:
    world = request.getfixturevalue(request.param)
    world.position.stage, world.position.step = "ppo", 7
    return world


class TestRollout:
    def test_every_sequence_once_with_its_version(self, world: World):
        version = world.serve("sft")
        requests = world.requests(3)
        rollouts = world.roles.rollout.generate(requests, SAMPLING, version).result()
        batch = world.roles.rollout.fetch(rollouts).result()
        asked = {i: r for r in requests for i in r.ids}
        assert sorted(batch.ids.tolist()) == sorted(asked)
        assert rollouts.summary.ids.tolist() == batch.ids.tolist()
        assert (batch.versions == version).all()
        assert batch.logprobs.lengths.tolist() == batch.response_lengths.tolist()
        assert (batch.logprobs.values <= 0).all()
        for row, i in enumerate(batch.ids.tolist()):
            assert tuple(batch.prompt(row)) == asked[i].prompt_tokens
            response = batch.response(row)
            assert 1 <= len(response) <= SAMPLING.max_tokens
            assert EOS not in response[:-1]
            ended = response[-1] == EOS
            assert batch.finish[row] == (Finish.STOP if ended else Finish.LENGTH)
            assert ended or len(response) == SAMPLING.max_tokens

    def test_a_seed_fixes_its_sequence(self, world: World):
        version, rollout = world.serve("sft"), world.roles.rollout
        texts = []
        for seed in (0, 0, 1):
            answer = rollout.generate(world.requests(2, seed), SAMPLING, version)
            batch = rollout.fetch(answer.result()).result()
            order = np.argsort(batch.ids)
            texts.append([batch.response(int(row)) for row in order])
        assert texts[0] == texts[1]
        assert texts[0] != texts[2]

    def test_fewer_prompts_than_engines(self, world: World):
        version = world.serve("sft")
        (request, *_) = world.requests(1)
        rollouts = world.roles.rollout.generate([request], SAMPLING, version).result()
        assert rollouts.summary.ids.tolist() == list(request.ids)

    def test_it_does_not_matter_which_engine_serves(self, world: World):
        version, rollout = world.serve("sft"), world.roles.rollout
        found = []
        for chosen in (slice(None), slice(None, None, -1), slice(1, None)):
            asked = world.requests(2)[chosen]
            batch = rollout.fetch(rollout.generate(asked, SAMPLING, version).result()).result()
            row = {int(i): n for n, i in enumerate(batch.ids)}
            found.append({s: batch.response(row[i]) for r in asked
                          for i, s in zip(r.ids, r.seeds, strict=True)})  # fmt: skip
        assert found[0] == found[1]
        assert found[2].items() < found[0].items()

    def test_parts_together_are_the_whole(self, world: World):
        version, rollout = world.serve("sft"), world.roles.rollout
        texts = []
        for delivery in (Delivery(), Delivery(part_sequences=4)):
            generation = rollout.generate(world.requests(2), SAMPLING, version, delivery)
            parts = list(generation.parts())
            assert [p.summary.ids.tolist() for p in generation.parts()] == [
                p.summary.ids.tolist() for p in parts
            ]
            batch = RolloutBatch.concat([rollout.fetch(part).result() for part in parts])
            whole = rollout.fetch(generation.result()).result()
            assert sorted(whole.ids.tolist()) == sorted(batch.ids.tolist())
            texts.append([batch.response(int(row)) for row in np.argsort(batch.ids)])
        assert texts[0] == texts[1]

    def test_enough_groups_are_whole_and_what_they_would_have_been(self, world: World):
        version, rollout = world.serve("sft"), world.roles.rollout
        asked = world.requests(2)
        some = rollout.fetch(
            rollout.generate(asked, SAMPLING, version, Delivery(groups=3)).result()
        ).result()
        seeds = {i: s for r in asked for i, s in zip(r.ids, r.seeds, strict=True)}
        assert len(some) == 6
        assert len(set(some.prompt_ids.tolist())) == 3
        everything = world.requests(2)
        whole = rollout.fetch(rollout.generate(everything, SAMPLING, version).result()).result()
        by_seed = {s: i for r in everything for i, s in zip(r.ids, r.seeds, strict=True)}
        row = {int(i): n for n, i in enumerate(whole.ids)}
        for n, i in enumerate(some.ids.tolist()):
            assert some.response(n) == whole.response(row[by_seed[seeds[i]]])

    def test_paused_generations_go_on_after_the_next_admission(self, world: World):
        version, rollout = world.serve("sft"), world.roles.rollout
        rollout.pause().result()
        waiting = [rollout.generate(world.requests(2), SAMPLING, version) for _ in range(2)]
        probed = rollout.probe(PROMPTS, 4, 0.8, version).result()
        assert len(probed.shards) == rollout.size
        rollout.admit(version).result()
        rollout.resume(version)
        ids = [i for g in waiting for i in g.result().summary.ids.tolist()]
        assert len(set(ids)) == len(ids) == 4 * len(PROMPTS)

    def test_held_sequences_are_like_fresh_ones(self, world: World):
        _, batch = world.sample()
        held = world.roles.rollout.hold(batch)
        assert held.summary.ids.tolist() == batch.ids.tolist()
        again = world.roles.rollout.fetch(held).result()
        assert again.tokens.values.tolist() == batch.tokens.values.tolist()
        world.roles.reward.load(world.reward_spec()).result()
        assert world.roles.reward.score(held).result().ids.tolist() == batch.ids.tolist()

    @pytest.mark.parametrize("off", [-1, 1])
    def test_another_version_is_refused(self, world: World, off: int):
        version = world.serve("sft")
        answer = world.roles.rollout.generate(world.requests(1), SAMPLING, version + off)
        with pytest.raises(StaleEngineError, match=f"asked for version {version + off}"):
            answer.result()


class TestTokenFields:
    def test_logprobs_of_engine_trainer_and_reference_agree(self, world: World):
        roles = world.roles
        rollouts, batch = world.sample("sft")
        policy = roles.policy.load(world.train_spec("sft"))
        roles.reference.load(world.frozen_spec("sft")).result()
        policy.result()
        old = roles.policy.logprobs(world.works(rollouts, roles.policy.size), rollouts, 0.8)
        reference = roles.reference.logprobs(
            world.works(rollouts, roles.reference.size), rollouts, 0.8
        )
        rows = [world.fetch(answer.result(), batch.ids) for answer in (old, reference)]
        for found in rows:
            assert found.lengths.tolist() == batch.response_lengths.tolist()
            np.testing.assert_allclose(found.values, batch.logprobs.values, atol=1e-4)

    def test_values_cover_the_same_tokens(self, world: World):
        critic = world.roles.critic
        rollouts, batch = world.sample()
        critic.load(world.train_spec("reward_model")).result()
        fields = critic.values(world.works(rollouts, critic.size), rollouts).result()
        assert len(fields.shards) == critic.size
        values = world.fetch(fields, batch.ids)
        assert values.lengths.tolist() == batch.response_lengths.tolist()
        assert np.isfinite(values.values).all()
        assert np.ptp(values.values) > 0


class TestReward:
    def test_scores_stand_in_the_order_of_the_summary(self, world: World):
        reward, critic = world.roles.reward, world.roles.critic
        rollouts, batch = world.sample()
        reward.load(world.reward_spec()).result()
        scores = reward.score(rollouts).result()
        assert scores.ids.tolist() == rollouts.summary.ids.tolist()
        assert scores.failures == ("",) * len(scores.ids)
        critic.load(world.train_spec("reward_model")).result()
        texts = TokenBatch(batch.tokens, Ragged(batch.tokens.values == -1, batch.tokens.offsets))
        np.testing.assert_allclose(critic.score(texts).result(), scores.values, atol=1e-5)

    def test_sequences_of_the_driver_score_alike(self, world: World):
        reward = world.roles.reward
        rollouts, batch = world.sample()
        reward.load(world.reward_spec()).result()
        backwards = batch.select(np.arange(len(batch))[::-1])
        again = reward.score_batch(backwards).result()
        assert again.ids.tolist() == batch.ids[::-1].tolist()
        np.testing.assert_allclose(again.values[::-1], reward.score(rollouts).result().values)


class TestSync:
    def test_only_admitted_weights_are_served(self, world: World):
        policy, rollout = world.roles.policy, world.roles.rollout
        before = world.serve("sft")
        world.version += 1
        policy.load(world.train_spec("base")).result()
        offer = policy.publish_weights(world.version, "shm").result()
        receipts = rollout.receive_weights(offer).result()
        assert [r.version for r in receipts] == [world.version] * rollout.size
        assert {r.checksum for r in receipts} == {offer.checksum}
        for version in (before, world.version):
            with pytest.raises(StaleEngineError):
                rollout.generate(world.requests(1), SAMPLING, version).result()
        probed = rollout.probe(PROMPTS, 4, 0.8, world.version).result()
        assert len(probed.shards) == rollout.size
        assert len(set(probed.summary.ids.tolist())) == rollout.size * len(PROMPTS)
        rollout.admit(world.version).result()
        served = rollout.generate(world.requests(1), SAMPLING, world.version).result()
        assert (served.summary.versions == world.version).all()
        with pytest.raises(StaleEngineError):
            rollout.generate(world.requests(1), SAMPLING, before).result()

    def test_a_transaction_ends_on_the_trained_weights(self, world: World):
        policy, rollout = world.roles.policy, world.roles.rollout
        policy.load(world.train_spec("sft")).result()
        assert policy.shares_rows().result()  # a Llama
        policy.train_supervised(_share(_demonstrations(), policy.size)).result()
        sync = WeightSync(policy, rollout, world.config.rollout, PROMPTS, BUDGET)
        for _ in range(2):
            world.version += 1
            report = sync.run(world.version)
            assert report.version == world.version
            assert report.nbytes > 0
            assert report.parity.max_difference < 1e-4
        answer = rollout.generate(world.requests(2), SAMPLING, world.version)
        rollouts = answer.result()
        batch = rollout.fetch(rollouts).result()
        fields = policy.logprobs(world.works(rollouts, policy.size), rollouts, 0.8).result()
        assert compare_logprobs(batch, policy.fetch(fields).result()).max_difference < 1e-4

    def test_sleep_and_rest_change_no_answer(self, world: World):
        policy, rollout = world.roles.policy, world.roles.rollout
        policy.load(world.train_spec("sft")).result()
        policy.train_supervised(_share(_demonstrations(), policy.size)).result()
        version, texts = world.serve("sft"), []
        for sleeps in (False, True):
            if sleeps:
                rollout.sleep().result()
            answer = rollout.generate(world.requests(2), SAMPLING, version)
            rollout.sleep()  # ends nothing that is under way
            batch = rollout.fetch(answer.result()).result()
            texts.append([batch.response(int(row)) for row in np.argsort(batch.ids)])
        assert texts[0] == texts[1]
        sync = WeightSync(policy, rollout, world.config.rollout, PROMPTS, BUDGET)
        for _ in range(2):
            rollout.sleep().result()
            policy.train_supervised(_share(_demonstrations(), policy.size)).result()
            policy.rest().result()
            world.version += 1
            assert sync.run(world.version).parity.max_difference < 1e-4
        served = rollout.generate(world.requests(1), SAMPLING, world.version).result()
        assert (served.summary.versions == world.version).all()

    def test_another_architecture_is_refused_and_nothing_served(self, world: World):
        version = world.serve("sft")
        world.version += 1
        with pytest.raises(WeightSyncError, match="do not fit the model"):
            world.roles.rollout.load_checkpoint(world.path("deeper"), world.version).result()
        for each in (version, world.version):
            with pytest.raises(StaleEngineError):
                world.roles.rollout.generate(world.requests(1), SAMPLING, each).result()

    def test_nobody_admits_what_never_arrived(self, world: World):
        version = world.serve("sft")
        with pytest.raises(StaleEngineError):
            world.roles.rollout.admit(version + 5).result()


def _demonstrations() -> TokenBatch:
    prompts = [[1, 5, 9], [1, 6], [1, 8, 8, 8], [1, 4], [1, 10, 3]]
    return demonstration_batch(prompts, [[*p[1:], 11, EOS] for p in prompts])


def _share(batch: TokenBatch, ranks: int) -> list:
    return training_batches.supervised_step(batch, ranks, 16)


def _rankings() -> list[Ranking]:
    generator = np.random.default_rng(0)
    return [
        Ranking(
            n,
            Ragged.from_rows([[1, *generator.integers(3, 30, 4 + k)] for k in range(size)], "i4"),
            np.arange(1, size + 1) // tied + 1,
        )
        for n, (size, tied) in enumerate([(4, 1), (9, 2), (5, 1)])
    ]


class TestTraining:
    def test_supervised_loss_falls(self, world: World):
        policy = world.roles.policy
        policy.load(world.train_spec("sft")).result()
        shares = _share(_demonstrations(), policy.size)
        before = policy.evaluate_supervised(shares).result()
        assert before.tokens == _demonstrations().target_count
        losses = [policy.train_supervised(shares).result() for _ in range(6)]
        assert losses[0].loss == pytest.approx(before.nll / before.tokens, rel=1e-4)
        assert all(b.loss < a.loss for a, b in itertools.pairwise(losses))
        assert all(step.applied and step.grad_norm > 0 for step in losses)

    def test_ranking_loss_falls_and_the_bias_moves_scores(self, world: World):
        critic = world.roles.critic
        critic.load(world.train_spec("sft", "random")).result()
        shares = training_batches.ranking_step(_rankings(), critic.size, 64)
        before = critic.evaluate_rankings(shares).result()
        assert (before.pairs, before.rankings) == (6 + 32 + 10, 3)
        # every score comes back, in the order of the shares, so pairs can be looked at one by one
        scored = [r for share in shares for batch in share.micro_batches for r in batch]
        right = sum(
            int(ranking.ranks[a] < ranking.ranks[b] and found[a] > found[b])
            for ranking, found in zip(scored, before.scores, strict=True)
            for a, b in itertools.permutations(range(len(found)), 2)
        )
        assert [len(found) for found in before.scores] == [len(r.ranks) for r in scored]
        assert right == before.correct
        steps = [critic.train_rankings(shares).result() for _ in range(5)]
        assert steps[0].loss == pytest.approx(before.loss_sum / 3, rel=1e-3)
        assert steps[0].extra["pair_accuracy"] == pytest.approx(before.correct / before.pairs)
        after = critic.evaluate_rankings(shares).result()
        assert after.loss_sum < before.loss_sum
        texts = _demonstrations()
        scores = critic.score(texts).result()
        critic.shift_bias(1.5).result()
        np.testing.assert_allclose(critic.score(texts).result(), scores - 1.5, atol=1e-5)

    def test_what_is_saved_is_what_others_load(self, world: World, tmp_path: Path):
        roles = world.roles
        rollouts, batch = world.sample("base")
        roles.policy.load(world.train_spec("sft")).result()
        roles.policy.train_supervised(_share(_demonstrations(), roles.policy.size)).result()
        roles.policy.save(str(tmp_path / "saved"), world.path("sft")).result()
        spec = world.frozen_spec(str(tmp_path / "saved"))
        roles.reference.load(spec).result()
        found = [
            group.logprobs(world.works(rollouts, group.size), rollouts, 1.0).result()
            for group in (roles.policy, roles.reference)
        ]
        mine, theirs = (world.fetch(fields, batch.ids).values for fields in found)
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


class TestPpo:
    def _experience(self, world: World, rollouts: Rollouts, kept: np.ndarray) -> Experience:
        roles, works = world.roles, world.works
        loading = [
            roles.policy.load(world.train_spec("sft")),
            roles.critic.load(world.train_spec("reward_model")),
            roles.reference.load(world.frozen_spec("base")),
        ]
        for answer in loading:
            answer.result()
        answers = (
            roles.policy.logprobs(works(rollouts, roles.policy.size), rollouts, 0.8),
            roles.reference.logprobs(works(rollouts, roles.reference.size), rollouts, 0.8),
            roles.critic.values(works(rollouts, roles.critic.size), rollouts),
        )
        ids = rollouts.summary.ids
        dropped = ~np.isin(ids, kept)
        values = np.where(dropped, np.nan, np.arange(len(ids))).astype(np.float32)
        scores = Scores(ids, values, tuple("no answer" if d else "" for d in dropped))
        shaping = ShapingSpec(0.1, 1.0, 0.95, PartSpec("gae"))
        shares, fields = works(rollouts, roles.policy.size, kept), [a.result() for a in answers]
        sums = roles.policy.kl_sums(shares, rollouts, *fields[:2]).result()
        experience = roles.policy.build_experience(
            shares, rollouts, *fields, scores, shaping
        ).result()
        for own, summary in zip(sums, experience.summaries, strict=True):
            assert own.ids.tolist() == summary.ids.tolist()
            np.testing.assert_allclose(own.values, summary.kl, rtol=1e-6, atol=1e-7)
        return experience

    def test_experience_covers_each_kept_sequence_once(self, world: World):
        rollouts, batch = world.sample("sft")
        kept = batch.ids[[n for n in range(len(batch)) if n not in (2, 5, 6)]]
        experience = self._experience(world, rollouts, kept)
        assert len(experience.shards) == len(experience.summaries) == world.roles.policy.size
        ids = [i for s in experience.summaries for i in s.ids.tolist()]
        assert sorted(ids) == sorted(kept.tolist())
        tokens = batch.response_lengths[np.isin(batch.ids, kept)].sum()
        assert sum(s.advantage_count for s in experience.summaries) == tokens
        assert max(s.mismatch_max for s in experience.summaries) < 1e-4
        # scores minus KL: shaped return = score - 0.1 * KL
        score = dict(zip(batch.ids.tolist(), range(len(batch)), strict=True))
        for summary in experience.summaries:
            expected = [score[i] for i in summary.ids.tolist()] - 0.1 * summary.kl
            np.testing.assert_allclose(summary.shaped_returns, expected, atol=1e-4)

    def test_updates_report_each_step_and_change_the_policy(self, world: World):
        roles = world.roles
        rollouts, batch = world.sample("sft")
        experience = self._experience(world, rollouts, batch.ids)
        lengths = (batch.response_lengths, batch.tokens.lengths)
        plans = [StepPlan(g.size, BUDGET, 5, 2, (3,)) for g in (roles.policy, roles.critic)]
        text = [_demonstrations() for _ in range(6)]
        policy_steps = training_batches.policy_steps(batch.ids, *lengths, plans[0], text)
        critic_steps = training_batches.critic_steps(batch.ids, *lengths, plans[1])
        mean, deviation = whitening_moments(experience.summaries)
        loss = PolicyLossSpec(0.2, 0.8, mean, deviation, 0.5)
        updating = roles.policy.update(policy_steps, experience, loss)
        fitting = roles.critic.update(critic_steps, experience, 10.0)
        policy, critic = updating.result(), fitting.result()
        assert (len(policy), len(critic)) == (6, 6)
        assert {"clip_fraction", "approx_kl", "entropy", "ratio_max", "ptx_loss"} <= {
            *policy[0].extra
        }
        assert {"value_clip_fraction", "explained_variance"} <= {*critic[0].extra}
        # the first step compares the policy with itself
        assert policy[0].extra["ratio_max"] == pytest.approx(1.0, abs=1e-4)
        assert policy[0].extra["approx_kl"] == pytest.approx(0.0, abs=1e-6)
        assert policy[-1].extra["ratio_max"] != pytest.approx(1.0, abs=1e-4)
        assert policy[-1].extra["ptx_loss"] < policy[0].extra["ptx_loss"]
        assert np.mean([s.loss for s in critic[3:]]) < np.mean([s.loss for s in critic[:3]])

    def test_capped_tokens_weigh_what_the_cap_says(self, world: World):
        roles = world.roles
        rollouts, batch = world.sample("sft")
        experience = self._experience(world, rollouts, batch.ids)
        lengths = (batch.response_lengths, batch.tokens.lengths)
        plan = StepPlan(roles.policy.size, BUDGET, len(batch), 1, (3,))
        steps = training_batches.policy_steps(batch.ids, *lengths, plan)
        found = []
        for cap in (None, 1e9, 0.5):
            roles.policy.load(world.train_spec("sft")).result()
            loss = PolicyLossSpec(0.2, 0.8, 0.1, 1.3, importance_cap=cap)
            found.extend(roles.policy.update(steps, experience, loss).result())
        plain, fresh, halved = found
        assert "importance_mean" not in plain.extra
        # what the engines sampled is what the trainer holds: every weight is 1, and then cut to .5
        assert fresh.extra["importance_mean"] == pytest.approx(1.0, abs=1e-4)
        assert fresh.extra["importance_capped"] == 0.0
        assert fresh.loss == pytest.approx(plain.loss, abs=1e-5)
        assert halved.extra["importance_mean"] == 0.5
        assert halved.extra["importance_capped"] == 1.0
        assert halved.loss == pytest.approx(plain.loss / 2, abs=1e-5)


class TestFailures:
    def test_a_typed_error_keeps_its_parts_and_names_its_place(self, world: World):
        spec = world.frozen_spec("nowhere")
        with pytest.raises(MissingCheckpointError) as caught:
            world.roles.reference.load(spec).result()
        error = caught.value
        assert isinstance(error, FileNotFoundError)
        assert error.what
        assert world.path("nowhere") in error.where
        _names(error, "reference rank 0", "reference: load")
        # the group lives on
        world.roles.reference.load(world.frozen_spec("sft")).result()

    def test_the_fix_crosses_the_border(self, world: World):
        answer = world.roles.rollout.generate(world.requests(1), SAMPLING, 10_000)
        with pytest.raises(StaleEngineError) as caught:
            answer.result()
        assert "transfer the weights of that version" in caught.value.fix
        _names(caught.value, "rollout rank 0", "rollout: generate")

    def test_a_sequence_that_nobody_made(self, world: World):
        rollouts, _ = world.sample(samples=1)
        critic = world.roles.critic
        critic.load(world.train_spec("reward_model")).result()
        works = training_batches.equal_work(np.array([999_999]), np.array([4]), critic.size, BUDGET)
        with pytest.raises(LedgerError, match="no rollout for sequences 999999") as caught:
            critic.values(works, rollouts).result()
        _names(caught.value, "critic rank", "critic: values")

    def test_an_unexpected_exception_is_quoted(self, world: World):
        with pytest.raises(RoleError, match="reward rank 0 failed: AttributeError") as caught:
            world.roles.reward.load("no spec").result()  # type: ignore[arg-type]
        assert "reward: load" in caught.value.where

    def test_a_late_answer_and_a_dead_process(self, world: World):
        rollouts, _ = world.sample(samples=1)
        group = world.hurried
        group.load(world.reward_spec()).result()
        with pytest.raises(DeadlineError, match=r"no answer within .* reward: score") as late:
            group.score(rollouts).result()
        assert isinstance(late.value, TimeoutError)
        assert late.value.where == "reward rank 0"
        assert "stage ppo, step 7" in late.value.what

        world.end_hurried()
        began = time.monotonic()
        with pytest.raises(RoleDiedError, match="reward rank 0 ended: reward: load") as dead:
            group.load(world.reward_spec()).result()
        assert time.monotonic() - began < 10
        assert "stage ppo, step 7" in dead.value.what


def _names(error: RehearsalError, *parts: str) -> None:
    for part in (*parts, "stage ppo, step 7"):
        assert part in error.where


class TestRayAlone:
    """What only processes can show."""

    def test_every_role_is_a_process_of_its_own(self, ray_actors: World):
        ray_actors.roles.reward.load(ray_actors.reward_spec()).result()
        ray_actors.roles.reference.load(ray_actors.frozen_spec("sft")).result()
        infos = ray_actors.roles.infos()
        named = sorted((info.role, info.rank) for info in infos)
        assert named == [
            ("critic", 0), ("policy", 0), ("policy", 1), ("reference", 0), ("reward", 0),
            ("rollout", 0),
        ]  # fmt: skip
        assert len({info.pid for info in infos} | {os.getpid()}) == 7
        assert all(psutil.pid_exists(info.pid) for info in infos)
        # Ray's own default of 15 would leave them 3 % of a core beside a busy process
        assert {psutil.Process(i.pid).nice() for i in infos} == {psutil.Process().nice()}

    def test_two_cpus_are_enough(self, ray_actors: World):
        assert ray.cluster_resources()["CPU"] == 2


def test_no_server_of_a_local_cluster_listens_beyond_this_machine(world: World) -> None:
    here = psutil.Process()
    open_to_others: list[str] = []
    for process in (here, *here.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            name = " ".join(process.cmdline())[:60]
            open_to_others += [
                f"{name} {each.laddr}"
                for each in process.net_connections(kind="inet")
                if each.status == psutil.CONN_LISTEN
                and each.laddr.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
            ]
    assert open_to_others == []

"""Processor threads of each worker, for machines of any number of cores."""

from __future__ import annotations

from pathlib import Path

import pytest
from composing import composed
from fakes.session import Run, small_config

from orchestrator.config.cluster import RoleName
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning import threads
from orchestrator.planning.placement import place_roles
from orchestrator.planning.plan import make_plan, render_plan
from orchestrator.planning.threads import engine_threads, share_of, threads_of
from orchestrator.planning.worker_specs import role_environment, rollout_environment
from orchestrator.stages.ppo.loop import ppo
from orchestrator.stages.sft import sft
from workers.training.estimator import Estimator

PRETRAIN, PPO, EVALUATE = StageName.pretrain, StageName.ppo, StageName.evaluate
WIDE = ("model.pocket.hidden_size=2048", "model.pocket.heads=8", "model.pocket.kv_heads=8")

ALONE = Estimator(of_sequences=lambda batch: batch.returns)


def wide(*arguments: str, cores: int = 0) -> Config:
    """The pocket recipe with a model wide enough for threads."""
    return composed("+experiment=pocket", *WIDE, f"cluster.cores={cores}", *arguments)


def of_roles(config: Config, stage: StageName) -> dict[str, int]:
    roles = [role for role in RoleName if role is not RoleName.environment]
    return {role.value: threads_of(config, stage, role) for role in roles}


@pytest.mark.parametrize(
    ("cores", "alone", "trainer", "scorer"),
    [(1, 1, 1, 1), (2, 2, 1, 1), (4, 4, 2, 1), (8, 8, 4, 2), (16, 16, 8, 5)],
)
def test_cores_are_divided_among_those_that_compute_at_the_same_time(
    cores: int, alone: int, trainer: int, scorer: int
) -> None:
    config = wide(cores=cores)
    assert threads_of(config, PRETRAIN, RoleName.policy) == alone
    assert threads_of(config, StageName.reward_model, RoleName.critic) == alone
    assert threads_of(config, EVALUATE, RoleName.reference) == alone
    assert engine_threads(config) == alone
    assert of_roles(config, PPO) == {
        "rollout": alone, "reward": scorer, "reference": scorer, "policy": trainer,
        "critic": trainer,
    }  # fmt: skip


def test_ranks_and_engines_of_a_node_share_its_cores() -> None:
    ranks = wide("cluster.roles.policy.workers=2", "cluster.roles.rollout.workers=2", cores=8)
    assert threads_of(ranks, PRETRAIN, RoleName.policy) == 4
    assert of_roles(ranks, PPO)["policy"] == 2  # two ranks beside one of the critic
    assert engine_threads(ranks) == 4


def test_a_node_without_the_role_does_not_count() -> None:
    cluster = wide("cluster.nodes=2", "cluster.address=auto", "cluster.placement=apart",
                   "rollout.transport=gloo", "cluster.cpus_per_node=2").cluster  # fmt: skip
    layout = place_roles(cluster, [RoleName.policy, RoleName.critic])
    assert [[p.role for p in node.places] for node in layout.nodes] == [
        [RoleName.policy], [RoleName.critic],
    ]  # fmt: skip
    assert share_of(6, layout, RoleName.policy, {RoleName.policy, RoleName.critic}) == 6


def test_without_a_critic_the_policy_updates_alone() -> None:
    config = wide(f"algorithm.advantage={__name__}:ALONE", cores=6)
    assert of_roles(config, PPO)["policy"] == 6


@pytest.mark.parametrize("key", ["algorithm.staleness=1", "rollout.stream_sequences=8"])
def test_engines_that_sample_beside_others_share_with_them(key: str) -> None:
    assert engine_threads(wide(key, cores=12)) < 12


def test_trainers_share_with_engines_that_sample_ahead() -> None:
    config = wide("algorithm.staleness=1", cores=12)
    assert of_roles(config, PPO)["policy"] == 4
    assert engine_threads(config) == 4


@pytest.mark.parametrize(("width", "threads"), [(64, 1), (128, 1), (256, 2), (512, 4)])
def test_a_narrow_model_keeps_few_threads_busy(width: int, threads: int) -> None:
    sizes = (f"model.pocket.hidden_size={width}", "model.pocket.heads=1", "model.pocket.kv_heads=1")
    config = composed("+experiment=pocket", *sizes, "cluster.cores=16")
    assert threads_of(config, PRETRAIN, RoleName.policy) == threads
    assert engine_threads(config) == threads


def test_the_plan_is_silent_about_single_threads() -> None:
    config = composed("+experiment=pocket", "cluster.cores=1")
    assert "threads per worker" not in render_plan(make_plan(config))


def test_a_given_number_counts_whatever_the_machine() -> None:
    config = wide("cluster.roles.policy.threads=5", cores=2)
    assert threads_of(config, PPO, RoleName.policy) == 5
    narrow = composed("+experiment=pocket", "cluster.roles.rollout.threads=3", "cluster.cores=1")
    assert rollout_environment(narrow)["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("role", [*RoleName])
def test_threads_that_wait_sleep(role: RoleName) -> None:
    environment = role_environment(wide().cluster, role)
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "GOMP_SPINCOUNT" not in environment


def test_on_gpus_a_worker_has_a_thread_per_cpu_that_it_reserves() -> None:
    config = composed("+experiment=ppo", "cluster=node_8gpu", "model.checkpoints.sft=/nowhere",
                      "cluster.roles.reward.cpus=0.5")  # fmt: skip
    assert of_roles(config, PPO) == {
        "rollout": 4, "reward": 1, "reference": 4, "policy": 4, "critic": 4,
    }  # fmt: skip


def test_cores_are_those_of_this_process_or_of_the_nodes_that_are_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 3.5)
    assert threads_of(wide(), PRETRAIN, RoleName.policy) == 3
    joined = wide("cluster.address=auto", "cluster.cpus_per_node=6", "rollout.transport=gloo")
    assert threads_of(joined, PRETRAIN, RoleName.policy) == 6


def test_the_plan_names_the_threads_of_each_stage() -> None:
    text = render_plan(make_plan(wide(cores=4)))
    assert "threads per worker: policy 4\n" in text
    assert "threads per worker: rollout 4, reward 1, reference 1, policy 2, critic 2\n" in text


def test_each_model_is_loaded_with_the_threads_of_its_stage(tmp_path: Path) -> None:
    config = small_config()
    config.stages, config.cluster.cores = [StageName.sft, StageName.ppo], 6
    config.model.pocket.hidden_size = 768
    run = Run(tmp_path, config)
    sft(run.session)
    ppo(run.session)
    assert [f["spec"].threads for f in run.hub.facts("policy.load")] == [6, 3]
    (critic,), (reference,) = run.hub.facts("critic.load"), run.hub.facts("reference.load")
    (reward,) = run.hub.facts("reward.load")
    assert (critic["spec"].threads, reference["spec"].threads) == (3, 2)
    assert reward["spec"].model.threads == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("cluster.cores=4",), True), (("cluster.cores=3",), False), ((), False),
     (("cluster.cores=4", "cluster.address=auto", "rollout.transport=gloo"), False)],
)  # fmt: skip
def test_more_cores_than_there_are_is_noted(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: bool
) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 3.5)
    notes = [n for n in make_plan(composed("+experiment=pocket", *arguments)).notes
             if "this process may use 3.5" in n]  # fmt: skip
    assert len(notes) == told

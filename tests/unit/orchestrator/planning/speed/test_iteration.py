"""Estimated seconds of a PPO iteration, against figures by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.command_line.composition import compose_run
from orchestrator.config.cluster import RoleName
from orchestrator.config.schema import Config
from orchestrator.planning.model_sizes import ModelSize
from orchestrator.planning.placement import Layout, place_roles
from orchestrator.planning.plan import make_plan, render_plan
from orchestrator.planning.speed.first_change import estimate_lines, first_change
from orchestrator.planning.speed.hardware import H100, H200, Hardware, hardware_of
from orchestrator.planning.speed.iteration import StepEstimate, estimate_step, gpus_of

GPU = Hardware("plain", flops=1e12, memory=1e12, node_link=1e11, network=1e10, host_link=1e10,
               forward=1.0, training=1.0, decoding=1.0, links=1.0)  # fmt: skip
BIG = ModelSize(1_000_000_000, 1000, 4096, 1000, 100, layers=10)
SMALL = replace(BIG, parameters=100_000_000)
SIZES = dict.fromkeys(RoleName, BIG) | {RoleName.reward: SMALL, RoleName.critic: SMALL}
ROLES = tuple(role for role in RoleName if role is not RoleName.environment)
KEYS = (
    "+experiment=ppo", "cluster=node_8gpu", "trainer=zero2_bf16",
    "model.checkpoints.sft=a", "model.checkpoints.reward_model=b", "data.files.prompts=c",
    "data.files.max_prompt_tokens=100", "rollout.max_prompt_tokens=100",
    "rollout.max_response_tokens=100", "algorithm.prompts_per_iteration=8",
    "algorithm.sequences_per_minibatch=4", "model.gradient_checkpointing=false",
    "rollout.enforce_eager=false",
)  # fmt: skip
TOKENS = 8 * 100  # 50 of each prompt and response on average


def estimate(*keys: str, gpu: Hardware = GPU) -> StepEstimate:
    config, layout = placed(*keys)
    found = estimate_step(config, layout, SIZES, gpu)
    assert found is not None
    return found


def placed(*keys: str) -> tuple[Config, Layout]:
    config = compose_run([*KEYS, *keys])
    return config, place_roles(config.cluster, ROLES)


def test_training_takes_six_operations_per_parameter_and_token() -> None:
    # Two ranks of the policy; two optimizer steps that read and write 30 bytes a parameter.
    assert estimate().phases["train"] == pytest.approx(6e9 * TOKENS / 2e12 + 2 * 30e9 / 2 / 1e12)


def test_gradient_checkpointing_adds_a_forward_pass() -> None:
    more = estimate("model.gradient_checkpointing=true").phases["train"]
    assert more - estimate().phases["train"] == pytest.approx(2e9 * TOKENS / 2e12)


def test_small_models_are_bound_by_launching_kernels() -> None:
    fast = estimate(gpu=replace(GPU, flops=1e18, memory=1e18, node_link=1e18)).phases
    assert fast["train"] == pytest.approx(
        2 * 3 * 3e-4 * 10, rel=1e-4
    )  # ten layers, one pass per step
    assert fast["score"] == pytest.approx(3e-4 * 10)


def test_every_epoch_trains_on_all_tokens_again() -> None:
    twice = estimate("algorithm.epochs=2").phases["train"]
    assert twice == pytest.approx(2 * estimate().phases["train"])


def test_scores_last_as_long_as_the_slowest_role() -> None:
    # The reference has one GPU, the policy two.
    assert estimate().phases["score"] == pytest.approx(2e9 * TOKENS / 1e12)


def test_roles_that_share_a_gpu_compute_one_after_the_other() -> None:
    shared = estimate("cluster=one_gpu", "trainer=zero2_bf16", "rollout.enforce_eager=false")
    assert shared.phases["score"] == pytest.approx((2e9 + 2e9 + 2e8 + 2e8) * TOKENS / 1e12)
    assert shared.phases["train"] == pytest.approx(6.6e9 * TOKENS / 1e12 + 2 * 30 * 1.1e9 / 1e12)


def test_generation_reads_weights_and_cache_in_every_step() -> None:
    # Two engines with four sequences each; the longest has 100 tokens, of four on average two run.
    prompts = 2e9 * 50 * 4 / 1e12
    read = 2 * (1e9 + 1000 * 2 * 75) / 1e12  # bf16
    computed = 2e9 * 2 / 1e12
    step = max(read, computed) + 10 * 2e-5 + 2e-3
    assert estimate().phases["generate"] == pytest.approx(prompts + 100 * step)


def test_waiting_sequences_fill_the_places_of_finished_ones() -> None:
    # One at a time: three mean responses, then the longest.
    few = estimate("rollout.max_concurrent_sequences=1").phases["generate"]
    steps, batch = 3 * 50 + 100, 4 * 50 / 250
    read = 2 * (1e9 + 1000 * batch * 75) / 1e12
    assert few == pytest.approx(2e9 * 50 * 4 / 1e12 + steps * (read + 10 * 2e-5 + 2e-3))


def test_zero_3_waits_for_links_that_are_slower_than_its_products() -> None:
    slow = replace(GPU, node_link=1e8)
    found = estimate("trainer=zero3_bf16", gpu=slow).phases["train"]
    # Half of 2 GB of weights comes from the other rank, three times, in each of two steps.
    assert found == pytest.approx(2 * 3 * 2e9 / 2 / 1e8 + 2 * 30e9 / 2 / 1e12)
    assert estimate("trainer=zero3_bf16").phases["train"] == pytest.approx(
        estimate().phases["train"]
    )


def test_a_sync_sends_the_weights_over_its_transport() -> None:
    assert estimate().phases["sync"] == pytest.approx(2e9 / 1e11 + 0.2)
    assert estimate("rollout.transport=shm").phases["sync"] == pytest.approx(2e9 / 5e9 + 0.2)
    gathered = estimate("trainer=zero3_bf16").phases["sync"]
    assert gathered == pytest.approx(2 * 2e9 / 1e11 + 0.2)


def test_sleeping_engines_and_resting_state_travel_twice() -> None:
    keys = ("cluster=one_gpu", "trainer=zero2_bf16", "rollout.transport=shm")
    awake = estimate(*keys).phases["sync"]
    asleep = estimate(*keys, "rollout.sleep=true", "trainer.rest_on_host=true").phases["sync"]
    assert asleep - awake == pytest.approx(2 * 2e9 / 1e10 + 2 * 12e9 / 1e10)


def test_generation_ahead_hides_the_shorter_of_both_sides() -> None:
    phases = estimate().phases
    working = phases["score"] + phases["train"]
    assert estimate().seconds == pytest.approx(phases["generate"] + working + phases["sync"])
    ahead = estimate("algorithm.staleness=1").seconds
    assert ahead == pytest.approx(max(phases["generate"], working) + phases["sync"])


def test_idle_is_what_a_role_s_own_work_leaves() -> None:
    found = estimate()
    work = found.phases["generate"] + found.phases["sync"]
    assert found.idle[RoleName.rollout] == pytest.approx(1 - work / found.seconds)
    assert found.idle[RoleName.reward] == pytest.approx(1 - 2e8 * TOKENS / 1e12 / found.seconds)
    assert found.throughput == pytest.approx(8 / found.seconds)


def test_roles_are_counted_on_the_gpus_that_they_share() -> None:
    _, layout = placed("cluster=one_gpu")
    assert list(gpus_of(layout).values()) == [set(ROLES)]
    _, layout = placed()
    assert sorted(len(roles) for roles in gpus_of(layout).values()) == [1] * 8


@pytest.mark.parametrize(
    ("keys", "best"),
    [
        ((), "algorithm.staleness=1 algorithm.importance_cap=2.0"),
        (
            ("algorithm.staleness=1",),
            "cluster.roles.rollout.workers=1 cluster.roles.policy.workers=3",
        ),
    ],
)
def test_the_change_that_helps_most_is_named_and_the_configuration_stays(
    keys: tuple[str, ...], best: str
) -> None:
    config, layout = placed(*keys)
    now = estimate_step(config, layout, SIZES, GPU)
    assert now is not None
    change = first_change(config, ROLES, SIZES, GPU, now)
    assert change is not None
    assert change.keys == best
    changed = estimate(*keys, *change.keys.split())
    assert change.gain == pytest.approx(changed.throughput / now.throughput)
    assert (config.cluster.roles.policy.workers, config.algorithm.staleness) == (2, len(keys))


def test_nothing_is_advised_that_gains_less_than_the_estimate_can_tell() -> None:
    config, layout = placed("cluster=one_gpu")
    now = estimate_step(config, layout, SIZES, GPU)
    assert now is not None
    config.algorithm.staleness = 1
    assert first_change(config, ROLES, SIZES, GPU, now) is None


def test_the_gpu_is_assumed_by_its_memory() -> None:
    assert hardware_of(compose_run([*KEYS, "cluster.gpu_memory_gib=80"])) is H100
    assert hardware_of(compose_run([*KEYS, "cluster.gpu_memory_gib=140"])) is H200


def test_plans_on_gpus_show_the_estimate_with_what_it_assumes() -> None:
    config, layout = placed()
    assert estimate_lines(config, layout, None) == ()
    shown = render_plan(make_plan(compose_run(["+experiment=pocket", "cluster=node_8gpu"])))
    assert "a PPO iteration, estimated and never measured on this cluster" in shown
    assert "  assumed        prompts and responses of 50% of their limits\n" in shown
    assert "H100, 989 TFLOP/s, 40% of it in training and 50% in other passes\n" in shown
    on_cpus = render_plan(make_plan(compose_run(["+experiment=pocket"])))
    assert "estimated and never measured" not in on_cpus
    without = make_plan(
        compose_run(["+experiment=pocket", "cluster=node_8gpu", "stages=[pretrain]"])
    )
    assert without.estimate == ()

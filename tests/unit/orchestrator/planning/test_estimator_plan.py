"""What the plan makes of an advantage estimator that needs no critic."""

from __future__ import annotations

import pytest
from composing import composed

from orchestrator.config.cluster import RoleName
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.plan import make_plan, render_plan
from workers.errors import ConfigError
from workers.training.estimator import Estimator

PAIRS = Estimator(of_sequences=lambda batch: batch.returns, needs_samples=2)
OWN = (f"algorithm.advantage={__name__}:PAIRS", "algorithm.samples_per_prompt=2")


def pocket(*overrides: str) -> Config:
    return composed("+experiment=pocket", *overrides)


def roles(config: Config) -> dict[str, tuple[RoleName, ...]]:
    return {stage.name.value: stage.roles for stage in make_plan(config).stages}


def test_only_ppo_does_without_the_critics_trainers() -> None:
    four = (RoleName.rollout, RoleName.reward, RoleName.reference, RoleName.policy)
    found = roles(pocket(*OWN))
    assert set(found["ppo"]) == set(found["ppo_ptx"]) == set(four)
    assert RoleName.critic in found["reward_model"]
    assert RoleName.critic in roles(pocket())["ppo"]


def test_a_run_of_ppo_alone_counts_no_critic_anywhere() -> None:
    only = ("stages=[ppo]", "model.checkpoints.sft=a", "model.checkpoints.reward_model=b")
    with_critic = make_plan(pocket(*only, "algorithm.samples_per_prompt=2")).layout
    layout = make_plan(pocket(*only, *OWN)).layout
    assert RoleName.critic not in layout.roles
    assert layout.cpus == with_critic.cpus - pocket().cluster.roles.critic.cpus
    assert "critic" not in render_plan(make_plan(pocket(*only, *OWN)))


def test_more_critic_ranks_than_sequences_matter_only_to_a_critic() -> None:
    make_plan(pocket(*OWN, "stages=[pretrain,sft,ppo]", "reward.kind=function",
                     "reward.bridge=text", "reward.function=a:b",
                     "cluster.roles.critic.workers=64"))  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("algorithm.samples_per_prompt", "1", "compares at least 2 samples"),
        ("algorithm.critic_warmup_iterations", "1", "there is no critic"),
        ("algorithm.advantage", "gea", "no advantage estimator 'gea'"),
    ],
)
def test_what_the_estimator_lacks_is_refused_at_its_key(key: str, value: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        make_plan(pocket(*OWN, f"{key}={value}"))
    assert caught.value.where == key
    without = pocket(*OWN, f"{key}={value}")
    without.stages = [StageName.pretrain, StageName.sft]
    make_plan(without)  # no stage computes advantages


def test_keys_that_only_a_critic_reads_are_named() -> None:
    notes = make_plan(pocket(*OWN, "algorithm.value_clip=0.3")).notes
    assert any("algorithm.value_clip has no effect" in note for note in notes)
    assert not any("has no effect" in note for note in make_plan(pocket(*OWN)).notes)
    assert not any(
        "has no effect" in n for n in make_plan(pocket("algorithm.value_clip=0.3")).notes
    )

"""The algorithms of conf/algorithm: what their plan says, and which settings are refused."""

from __future__ import annotations

import pytest
from composing import composed

from orchestrator.config.cluster import RoleName
from orchestrator.config.schema import Config
from orchestrator.planning.plan import make_plan, render_plan
from workers.errors import ConfigError


def pocket(*overrides: str) -> Config:
    return composed("+experiment=pocket", *overrides)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("instructgpt", "advantages gae, loss clip within 0.8 .. 1.2, averaged over tokens, "
         "KL in the reward"),
        ("rloo", "advantages rloo, loss clip within 0.8 .. 1.2, averaged over sequences, "
         "KL in the reward"),
        ("grpo", "advantages grpo, loss clip within 0.8 .. 1.2, averaged over sequences, "
         "KL in the loss"),
        ("dr_grpo", "advantages dr_grpo, loss clip within 0.8 .. 1.2, averaged over sequences, "
         "divided by the longest response, KL in the loss"),
        ("reinforce_pp", "advantages reinforce_pp, loss clip within 0.8 .. 1.2, averaged over "
         "tokens, KL in the reward"),
        ("reinforce_pp_baseline", "advantages reinforce_pp_baseline, loss clip within 0.8 .. 1.2, "
         "averaged over tokens, KL in the loss"),
        ("dapo", "advantages grpo, loss clip within 0.8 .. 1.28, averaged over tokens, "
         "KL in the reward"),
        ("gspo", "advantages grpo, loss gspo within 0.9997 .. 1.0004, averaged over sequences, "
         "KL in the loss"),
        ("cispo", "advantages grpo, loss cispo within 0 .. 5, averaged over tokens, "
         "KL in the loss"),
    ],
)  # fmt: skip
def test_a_group_sets_the_whole_algorithm(name: str, says: str) -> None:
    plan = make_plan(pocket(f"algorithm={name}"))
    (ppo,) = (stage for stage in plan.stages if stage.name.value == "ppo")
    assert ppo.facts[0] == says
    assert (RoleName.critic in ppo.roles) is (name == "instructgpt")
    assert "128 sequences per iteration" in ppo.facts[1]
    assert says in render_plan(plan)


@pytest.mark.parametrize(
    ("overrides", "says", "where"),
    [
        (["algorithm.policy_loss=clp"], "no policy loss 'clp'", "algorithm.policy_loss"),
        (["algorithm.kl.place=loss", "algorithm.kl.control=adaptive"],
         "needs the penalty in the reward", "algorithm.kl.control"),
        (["algorithm.importance_floor=0.5"], "importance_cap=null", "algorithm.importance_cap"),
        (["algorithm.importance_outside=drop"], "importance_cap=null", "algorithm.importance_cap"),
        (["algorithm.importance_floor=3", "algorithm.importance_cap=2"], "is above",
         "algorithm.importance_floor"),
        (["algorithm.dual_clip=1"], "is out of range", "algorithm.dual_clip"),
        (["algorithm.clip_high=0"], "is out of range", "algorithm.clip_high"),
        (["algorithm=dapo", "algorithm.overlong.buffer_tokens=999"], "is longer than a response",
         "algorithm.overlong.buffer_tokens"),
        (["algorithm=grpo", "algorithm.samples_per_prompt=1"], "compares at least 2",
         "algorithm.samples_per_prompt"),
    ],
)  # fmt: skip
def test_settings_that_contradict_are_refused(overrides: list[str], says: str, where: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        make_plan(pocket(*overrides))
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["algorithm.policy_loss=gspo"], "hardly ever acts"),
        (["algorithm=cispo", "algorithm.dual_clip=3"], "dual_clip has no effect"),
        (["algorithm=grpo", "algorithm.kl.estimator=k1"], "gradient of 0 on average"),
    ],
)
def test_settings_that_do_not_what_they_seem_to_are_named(overrides: list[str], says: str) -> None:
    assert any(says in note for note in make_plan(pocket(*overrides)).notes)
    assert not any(says in note for note in make_plan(pocket("algorithm=gspo")).notes)

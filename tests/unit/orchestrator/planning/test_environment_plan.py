"""What the plan refuses beside an environment, and what it says of one."""

from __future__ import annotations

import pytest
from composing import composed

from orchestrator.config.cluster import RoleName
from orchestrator.planning.plan import make_plan
from orchestrator.planning.runs.expand import environment_of
from workers.errors import ConfigError

TINY = ("+experiment=pocket_tiny", "reward.kind=function", "reward.function=a:b")
STAGES = "stages=[pretrain,sft,ppo,evaluate]"
TOOLS = ("environment=tools", "environment.tools=[calculator]")


def test_the_role_is_there_only_with_an_environment() -> None:
    without = make_plan(composed(*TINY, STAGES))
    plan = make_plan(composed(*TINY, STAGES, *TOOLS, "cluster.roles.environment.workers=2"))
    assert RoleName.environment not in without.layout.roles
    assert RoleName.environment in plan.layout.roles
    assert plan.layout.node_of(RoleName.environment, 1) == 0
    (ppo,) = [stage for stage in plan.stages if stage.name == "ppo"]
    assert "tools calculator: up to 4 turns" in ppo.facts


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("stages=[pretrain,sft,online_dpo]", "algorithm.samples_per_prompt=2"), "stages"),
        (("stages=[pretrain,sft,rejection_sampling]",), "stages"),
        (("stages=[pretrain,sft,label,reward_model]",), "stages"),
        (("stages=[pretrain,sft,collect]",), "stages"),
        (("stages=[pretrain,sft,reward_model,ppo]",), "stages"),  # samples the rankings
        ((STAGES, "algorithm.advantage=distill", "model.checkpoints.teacher=x"),
         "algorithm.advantage"),
        ((STAGES, "algorithm.staleness=1"), "algorithm.staleness"),
        ((STAGES, "rollout.stream_sequences=4"), "rollout.stream_sequences"),
        ((STAGES, "rollout.overprovision=0.5"), "rollout.overprovision"),
        ((STAGES, "reward.step_separator=."), "reward.step_separator"),
        ((STAGES, "evaluate.best_of=[2]"), "evaluate.best_of"),
        ((STAGES, "evaluate.few_shot=2"), "evaluate.few_shot"),
        ((STAGES, "environment.step_seconds=1000"), "environment.step_seconds"),
        ((STAGES, "environment.turn_tokens=999"), "environment.turn_tokens"),
    ],
)  # fmt: skip
def test_what_has_single_turns_is_refused(words: tuple[str, ...], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(composed(*TINY, *TOOLS, *words))
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("environment=function",), "environment.factory"),
        (("environment=tools",), "environment.tools"),
        (("environment.factory=a:b",), "environment.factory"),
        (("environment.tools=[calculator]",), "environment.tools"),
        ((*TOOLS, "environment.factory=a:b"), "environment.factory"),
        ((*TOOLS, "environment.max_turns=0"), "environment.max_turns"),
        ((*TOOLS, "environment.step_seconds=0"), "environment.step_seconds"),
    ],
)
def test_settings_that_do_not_fit_their_kind_are_refused(
    words: tuple[str, ...], where: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(*TINY, STAGES, *words)
    assert caught.value.where == where


@pytest.mark.parametrize("words", [(), TOOLS])
def test_a_reward_of_the_environment_needs_one_that_gives_rewards(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(composed("+experiment=pocket_tiny", STAGES, "reward.kind=environment", *words))
    assert caught.value.where == "reward.kind"
    given = ("environment=function", "environment.factory=a:b", "reward.kind=environment")
    make_plan(composed("+experiment=pocket_tiny", STAGES, *given))


def test_a_run_that_talks_with_nobody_says_so() -> None:
    plan = make_plan(composed(*TINY, "stages=[pretrain,sft]", *TOOLS))
    assert any("no stage of this run talks with it" in note for note in plan.notes)


def test_a_model_is_evaluated_with_the_environment_of_its_training() -> None:
    config = composed(
        *TINY, *TOOLS, "stages=[pretrain,sft,ppo,silent,evaluate]", "variants.silent.stage=ppo",
        "variants.silent.set.environment.kind=none", "variants.silent.set.environment.tools=[]",
    )  # fmt: skip
    make_plan(config)
    assert environment_of(config, "ppo").on
    assert environment_of(config, "sft").on
    assert not environment_of(config, "silent").on

"""Models of several sizes in one run, and prompted ones: what is planned, and what is refused."""

from __future__ import annotations

import pytest
from composing import composed

from orchestrator.config.cluster import RoleName
from orchestrator.planning.model_sizes import pocket_size, policy_size
from orchestrator.planning.plan import make_plan, render_plan
from orchestrator.planning.runs.expand import base_models, compared, expand
from orchestrator.preflight.dry_run import CHECKS
from workers.errors import BatchArithmeticError, ConfigError
from workers.pocket.source import PocketSource


def test_base_models_of_all_sizes_come_first_and_have_their_sizes() -> None:
    config = composed("+experiment=pocket_scale")
    assert compared(config) == [
        "base", "base_2x", "base_4x", "large", "sft", "sft_8x", "ppo", "ppo_ptx",
    ]  # fmt: skip
    assert base_models(config) == {"base", "base_2x", "base_4x", "large"}
    runs = {str(run.name): run for run in expand(config)}
    small = pocket_size(config.model.pocket).parameters
    ratios = [
        pocket_size(runs[name].config.model.large).parameters / small
        for name in ("base_2x", "base_4x", "pretrain_large")
    ]
    assert ratios == pytest.approx([2, 4, 8], rel=0.03)
    tuned = policy_size(runs["sft_8x"].config)
    assert tuned is not None
    assert tuned.parameters == pocket_size(config.model.large).parameters
    assert "base models answer again after 2 demonstration(s)" in render_plan(make_plan(config))


def test_what_a_variant_tunes_has_the_size_of_the_variant_that_it_starts_from() -> None:
    config = composed("+experiment=pocket_overoptimization")
    runs = {str(run.name): run for run in expand(config)}
    sizes = {name: policy_size(runs[name].config) for name in ("rm_tiny_1", "rm_small_1")}
    assert {name: size.parameters if size else 0 for name, size in sizes.items()} == {
        "rm_tiny_1": 15_840, "rm_small_1": 107_072,
    }  # fmt: skip


def test_memory_is_that_of_the_largest_model_that_a_variant_pretrains() -> None:
    config = composed("+experiment=pocket_claims")
    runs = {str(run.name): run for run in expand(config)}
    largest = pocket_size(runs["base_16x"].config.model.large).parameters
    assert largest == pytest.approx(16 * pocket_size(config.model.pocket).parameters, rel=0.05)
    held = {each.role: each.parameters for each in make_plan(config).memory}
    assert held[RoleName.policy] == held[RoleName.rollout] == largest
    assert held[RoleName.reference] == largest  # it measures the perplexity of every model
    assert held[RoleName.critic] < largest  # PPO trains the small model alone


def test_prompted_models_are_refused_where_they_cannot_answer() -> None:
    files = ("+experiment=evaluate", "model.checkpoints.sft=S", "data.files.evaluation_prompts=E",
             "judge=none")  # fmt: skip
    with pytest.raises(ConfigError, match="demonstrations of the pocket world") as caught:
        make_plan(composed(*files, "evaluate.few_shot=2"))
    assert caught.value.where == "evaluate.few_shot"
    with pytest.raises(ConfigError, match="earlier evaluation"):
        composed("+experiment=pocket", "evaluate.few_shot=2", "evaluate.answers=A")
    check, source = CHECKS["few-shot prompts"], PocketSource(0, 0.5, 0.25)
    wide = composed("+experiment=pocket_scale", "evaluate.prompts=64")
    assert not [*check(wide, source)]
    wide.rollout.max_prompt_tokens = 40
    with pytest.raises(BatchArithmeticError, match="after 2 demonstration") as caught:
        check(wide, source)
    assert "rollout.max_prompt_tokens=" in caught.value.fix

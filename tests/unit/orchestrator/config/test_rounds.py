"""Rounds as variants: what `iterate` adds to a run, and what it refuses."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from composing import composed

from orchestrator.command_line.composition import compose_run
from orchestrator.config.rounds.expansion import with_rounds
from orchestrator.config.rounds.iterate import From, IterateConfig, Rankings
from orchestrator.planning.plan import make_plan, render_plan
from orchestrator.planning.runs.expand import expand
from workers.errors import ConfigError

STAGES = ["pretrain", "sft", "label", "reward_model", "ppo", "evaluate"]
TINY = ("+experiment=pocket_tiny", f"stages=[{','.join(STAGES)}]")


def made(run: list[str] | None = None, variants: Any = None, **iterate: Any) -> Any:
    return with_rounds(run or STAGES, variants or {}, IterateConfig(**{"rounds": 3} | iterate))


def test_one_round_is_what_the_run_says() -> None:
    assert made(rounds=1, variants={"a": {"stage": "ppo"}}) == (STAGES, {"a": {"stage": "ppo"}})


def test_later_rounds_follow_the_first_one() -> None:
    stages, variants = made()
    assert stages == [
        "pretrain", "sft", "label", "reward_model", "ppo", "label_2", "reward_model_2", "ppo_2",
        "label_3", "reward_model_3", "ppo_3", "evaluate",
    ]  # fmt: skip
    assert variants["label_3"] == {
        "stage": "label",
        "reward_model": "reward_model_2",
        "set": {
            "label.models": ["ppo_2", "sft"], "label.shares": [3.0, 1.0], "label.scored": True,
        },
    }  # fmt: skip
    rankings = ["label", "label_2", "label_3"]
    assert variants["reward_model_3"] == {"stage": "reward_model", "rankings": rankings}
    assert variants["ppo_3"] == {"stage": "ppo", "reward_model": "reward_model_3"}


def test_the_rounds_of_config_yaml_are_made_of_it_again() -> None:
    once = made(prompts=7)
    assert made(*once, prompts=7) == once
    assert made(*once, prompts=7, rounds=2)[0] == made(prompts=7, rounds=2)[0]
    more = made(*once, prompts=7, rounds=4)
    assert more[0][-4:] == ["label_4", "reward_model_4", "ppo_4", "evaluate"]


def test_a_variant_of_the_first_round_is_that_of_all() -> None:
    own = {"rloo": {"stage": "ppo", "algorithm": "rloo", "set": {"algorithm": {"clip": 0.1}}}}
    stages = ["label", "reward_model", "rloo"]
    _, variants = made(stages, own, stages=stages, rounds=2)
    assert variants["rloo_2"] == own["rloo"] | {"reward_model": "reward_model_2"}
    assert variants["label_2"]["set"]["label.models"] == ["rloo", "sft"]


def test_what_is_given_of_a_later_round_goes_over_what_is_made() -> None:
    given = {
        "ppo_2": {"stage": "ppo", "set": {"algorithm.iterations": 3}},
        "label_2": {"set": {"label": {"prompts": 5}}},
    }
    _, variants = made(variants=given)
    assert variants["ppo_2"]["reward_model"] == "reward_model_2"
    assert variants["ppo_2"]["set"] == {"algorithm.iterations": 3}
    assert variants["label_2"]["set"]["label.prompts"] == 5
    assert variants["label_2"]["set"]["label.models"] == ["ppo", "sft"]
    assert "label.prompts" not in variants["label_3"]["set"]


def test_the_keys_of_iterate_say_what_a_later_round_does() -> None:
    _, variants = made(
        prompts=9, models=["base", "policy"], shares=[], rankings=Rankings.newest,
        reward_model=From.previous, policy=From.previous,
    )  # fmt: skip
    assert variants["label_2"]["set"] == {
        "label.models": ["base", "ppo"], "label.shares": [], "label.scored": True,
        "label.prompts": 9,
    }  # fmt: skip
    assert variants["reward_model_3"]["rankings"] == ["label_3"]
    assert variants["reward_model_3"]["from"] == "reward_model_2"
    assert variants["ppo_3"] == {
        "stage": "ppo", "reward_model": "reward_model_3", "from": "ppo_2", "reference": "sft",
    }  # fmt: skip


def test_rounds_without_a_reward_model() -> None:
    stages, variants = made(["label", "dpo"], stages=["label", "dpo"], rounds=2)
    assert stages == ["label", "dpo", "label_2", "dpo_2"]
    assert variants["dpo_2"] == {"stage": "dpo", "rankings": ["label", "label_2"]}
    assert variants["label_2"]["set"]["label.scored"] is False
    assert "reward_model" not in variants["label_2"]


@pytest.mark.parametrize(
    ("stages", "repeated", "what"),
    [
        (STAGES, ["label", "reward_modle", "ppo"], "did you mean reward_model"),
        (STAGES, ["label", "ppo", "reward_model"], "do not follow each other"),
        (STAGES, ["reward_model", "ppo"], "a round is labels"),
        (STAGES, ["label", "reward_model"], "a round is labels"),
        (STAGES, ["sft", "label", "reward_model", "ppo"], "a round is labels"),
        (STAGES, ["label", "reward_model", "ppo", "evaluate"], "a round is labels"),
        (["sft", "ppo"], ["label", "reward_model", "ppo"], "not among the stages"),
    ],
)
def test_stages_that_are_no_round_are_refused(
    stages: list[str], repeated: list[str], what: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        made(stages, stages=repeated)
    assert what in f"{caught.value.what} {caught.value.fix}"
    assert caught.value.where == "iterate.stages"


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["iterate.rounds=0"], "iterate.rounds"),
        (["iterate.stages=[]"], "iterate.stages"),
        (["iterate.models=[]"], "iterate.models"),
        (["iterate.shares=[1]"], "iterate.shares"),
        (["iterate.shares=[1,-1]"], "iterate.shares"),
        (["label.models=[]"], "label.models"),
        (["label.shares=[1,2]"], "label.shares"),
        (["label.min_completions=9", "label.max_completions=5"], "label.min_completions"),
    ],
)
def test_settings_that_make_no_sense_are_refused(words: list[str], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(*TINY, *words)
    assert caught.value.where == where


def test_the_plan_lists_the_rounds_and_what_they_read() -> None:
    config = compose_run([*TINY, "iterate.rounds=2", "label.prompts=24", "label.heldout_prompts=8"])
    runs = {str(run.name): run for run in expand(config)}
    assert runs["label_2"].reads == ("ppo", "sft", "reward_model")
    assert runs["label_2"].product == ""
    assert (runs["label_2"].first_prompt, runs["label_2"].earlier_labels) == (32, ("label",))
    assert runs["reward_model"].rankings == ("label",)
    assert runs["reward_model_2"].rankings == ("label", "label_2")
    assert runs["ppo_2"].reads == ("sft", "reward_model_2")
    text = render_plan(make_plan(config))
    assert "trains on the rankings of label, label_2" in text
    assert "answers of ppo (75%), sft (25%)" in text
    assert "from prompt 32 on" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_reference_stays_the_sft_model_where_a_policy_goes_on() -> None:
    config = compose_run([*TINY, "iterate.rounds=2", "iterate.policy=previous"])
    (run,) = (run for run in expand(config) if run.name == "ppo_2")
    assert (run.inputs["sft"], run.compared_with) == ("ppo", "sft")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["variants.rm.stage=reward_model", "variants.rm.rankings=labels"], "did you mean label"),
        (["variants.rm.stage=reward_model", "variants.rm.rankings=[label,label]"], "twice"),
        (["variants.rm.stage=ppo", "variants.rm.rankings=label"], "trains on no rankings"),
    ],
)
def test_rankings_of_nobody_are_refused(words: list[str], what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand(compose_run([*TINY[:1], "stages=[pretrain,sft,label,rm]", *words]))
    assert what in f"{caught.value.what} {caught.value.fix}"
    assert caught.value.where == "variants.rm.rankings"


@pytest.mark.parametrize(
    ("words", "where", "what"),
    [
        (["variants.label_2.set.label.models=[reward_model,sft]"], "models", "writes no answers"),
        (["variants.label_2.set.label.models=[reward_model_2,sft]"], "models", "writes no answers"),
    ],
)
def test_answers_of_what_writes_none_are_refused(words: list[str], where: str, what: str) -> None:
    given = [*words, "variants.label_2.stage=label"]
    with pytest.raises(ConfigError, match=what) as caught:
        make_plan(compose_run([*TINY, "iterate.rounds=2", *given]))
    assert caught.value.where == f"variants.label_2.set.label.{where}"


def test_the_commands_of_the_page_are_planned() -> None:
    page = (Path(__file__).parents[4] / "docs/iterated.md").read_text()
    blocks = [block.strip() for block in page.split("```")[1::2]]
    typed = [line for b in blocks for line in b.replace("\\\n", " ").splitlines()]
    commands = [
        shlex.split(line)[3:] for line in typed if line.startswith(".venv/bin/python -m orc")
    ]
    assert len(commands) >= 3
    for command in commands:
        config = compose_run(command)
        assert config.iterate.rounds > 1
        assert [stage.name for stage in make_plan(config).stages] == config.stages

"""Ranges of configuration keys: declared with every number, checked wherever a value can lie."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from omegaconf import OmegaConf

from orchestrator.config.data_sets import DataSetConfig, data_set
from orchestrator.config.engines import OptimizerConfig
from orchestrator.config.model import PocketModelConfig
from orchestrator.config.ranges import check_tree, limits_of
from orchestrator.config.schema import Config
from orchestrator.config.training import AlgorithmConfig, RewardModelConfig
from workers.errors import ConfigError


def leaves(owner: type = Config, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    hints = typing.get_type_hints(owner)
    for each in dataclasses.fields(owner):
        kind = hints[each.name]
        if dataclasses.is_dataclass(kind):
            yield from leaves(typing.cast(type, kind), f"{prefix}{each.name}.")
        else:
            yield f"{prefix}{each.name}", kind, each


def of(*kinds: object) -> list[str]:
    return [key for key, kind, _ in leaves() if kind in kinds]


FLOATS = of(float, float | None)
INTS = of(int, int | None)


def typed(**values: object) -> Config:
    """A configuration with these values, checked. (OmegaConf takes .2 s for each.)"""
    config = Config()
    for key, value in values.items():
        *sections, last = key.split(".")
        owner: Any = config
        for each in sections:
            owner = getattr(owner, each)
        setattr(owner, last, value)
    check_tree(config)
    return config


def refused(key: str, value: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        typed(**{key: value})
    return caught.value


def test_the_schema_has_many_numbers():
    assert len(FLOATS) > 60
    assert len(INTS) > 90


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "NaN", ".inf", "1e999"])
def test_every_float_is_finite_and_the_message_names_its_key(value: str):
    given = float(value.replace(".inf", "inf"))
    for key in FLOATS:
        error = refused(key, given)
        assert (error.where, error.what.split("=")[0]) == (key, key)
        assert "not a finite number" in error.what
        assert f"set {key} to a number" in error.fix


@pytest.mark.parametrize("value", [10**30, -(10**30)])
def test_every_whole_number_is_bounded(value: int):
    for key in INTS:
        error = refused(key, value)
        assert (error.where, "out of range" in error.what) == (key, True)
        assert f"set {key} to a whole number at least" in error.fix


@pytest.mark.parametrize("value", [1e300, -1e300, 5e-324])
def test_no_float_is_so_large_or_small_that_arithmetic_with_it_overflows(value: float):
    assert {refused(key, value).where for key in FLOATS} == set(FLOATS)


def test_every_number_declares_its_range():
    undeclared = [key for key, kind, each in leaves() if key in FLOATS + INTS
                  and limits_of(each) is None]  # fmt: skip
    assert undeclared == []


def test_the_defaults_lie_in_their_ranges():
    check_tree(Config())
    assert typed(seed=2**63 - 1).seed == 2**63 - 1


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("seed", -1, "at least 0 and at most 9,223,372,036,854,775,807"),
        ("algorithm.clip", -1.0, "above 0"),
        ("algorithm.clip", 0.0, "above 0"),
        ("algorithm.gamma", 1.5, "at least 0 and at most 1"),
        ("algorithm.ema_decay", 1.0, "at least 0 and below 1"),
        ("pretrain.steps", 0, "at least 1"),
        ("trainer.zero_stage", 0, "at least 1 and at most 3"),
        ("data.heldout_fraction", 1.0, "above 0 and below 1"),
        ("evaluate.lm_eval.fewshot", -2, "at least -1"),
        ("run.call_seconds", 1e10, "at most 1e+09"),
        ("cluster.roles.critic.workers", 0, "at least 1"),
    ],
)
def test_a_number_out_of_range_is_refused_in_words(key: str, value: object, words: str):
    error = refused(key, value)
    assert error.where == key
    assert words in error.fix


def test_a_composed_configuration_is_checked():
    composed = OmegaConf.structured(Config)
    composed.algorithm.kl.limit = "nan"
    with pytest.raises(ConfigError, match=r"algorithm.kl.limit=nan is not a finite number"):
        OmegaConf.to_object(composed)


def test_an_optional_number_may_be_absent_and_is_checked_when_it_is_not():
    assert typed(**{"algorithm.importance_cap": None}).algorithm.importance_cap is None
    assert refused("algorithm.importance_cap", 0.0).where == "algorithm.importance_cap"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("run.dir", "", "is empty"),
        ("run.dir", "a\0b", "control character"),
        ("run.dir", "x" * 300, "too long for a path: a part of it has 300 bytes"),
        ("run.dir", "é" * 128, "a part of it has 256 bytes"),
        ("run.dir", "x/" * 3000, "all 6,000"),
        ("model.checkpoints.base", "a\nb", "control character"),
        ("model.checkpoints.base", "\udce9t\udce9", "not valid UTF-8"),
        ("experiment", "a/b", "not the name of one folder"),
        ("experiment", "..", "not the name of one folder"),
        ("logger.wandb_project", " ", "is empty"),
        ("data.sets.mine.path", "a\0b", "control character"),
    ],
)
def test_a_text_that_no_file_system_takes_is_refused(key: str, value: str, words: str):
    given: dict[str, object] = {key: value}
    if key.startswith("data.sets"):
        given = {"data.sets": {"mine": data_set("mine", {"kind": "prompts", "path": value})}}
    with pytest.raises(ConfigError) as caught:
        typed(**given)
    assert caught.value.where == key
    assert words in caught.value.what


def test_an_instruction_may_have_lines_and_a_longest_path_is_taken():
    assert typed(**{"evaluate.endpoint.instruction": "a\n\tb"})
    assert typed(**{"run.dir": "x" * 255}).run.dir == "x" * 255


def test_a_secret_is_not_repeated():
    assert "hunter2" not in str(refused("evaluate.endpoint.url", "https://u:hunter2@h/\n"))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("stages", ["sft", "ppo", "sft"], "names sft twice"),
        ("model.freeze", ["a", ""], "entry 1 of model.freeze is empty"),
        ("model.lora.target", ["q", "q"], "names q twice"),
        ("model.lora.target", [], "no layer gets an adapter"),
        ("evaluate.lm_eval.tasks", ["a\0"], "control character"),
    ],
)
def test_a_list_names_each_entry_once_and_none_empty(key: str, value: list[str], words: str):
    assert words in refused(key, value).what


def test_values_that_do_not_fit_each_other_name_the_key_of_their_own_section():
    error = refused("model.large.heads", 5)
    assert (error.where, "heads=5" in error.what) == ("model.large", True)
    with pytest.raises(ConfigError, match="2 of 2"):
        check_tree(AlgorithmConfig(iterations=2, critic_warmup_iterations=2), "algorithm")
    with pytest.raises(ConfigError, match="min_completions=5"):
        check_tree(RewardModelConfig(min_completions=5, max_completions=4), "reward_model")


@pytest.mark.parametrize("value", [PocketModelConfig(), 3, ["sft"]])
def test_a_section_is_not_put_in_the_place_of_another(value: object):
    error = refused("cluster.roles.reward", value)  # as ${model.pocket} does
    assert (error.where, "belongs to another key" in error.what) == ("cluster.roles.reward", True)


def test_ranges_come_before_what_is_computed_with_them():
    with pytest.raises(ConfigError) as caught:
        check_tree(PocketModelConfig(heads=0), "model.pocket")  # would divide by it
    assert caught.value.where == "model.pocket.heads"


def test_a_section_that_stands_alone_is_checked_below_the_key_it_is_given():
    with pytest.raises(ConfigError) as caught:
        check_tree(OptimizerConfig(beta2=float("nan")), "sft.optimizer")
    assert caught.value.where == "sft.optimizer.beta2"
    with pytest.raises(ConfigError) as caught:
        check_tree(DataSetConfig(kind=typing.cast(Any, "prompts"), path="f", weight=-1.0), "x")
    assert caught.value.where == "x.weight"

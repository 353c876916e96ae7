"""Arguments as people type them: kept as typed where they are texts, refused in words elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from orchestrator.command_line.arguments import prepare
from orchestrator.command_line.errors import schema_keys, unknown_key
from orchestrator.command_line.flags import FLAGS
from orchestrator.command_line.foreign_names import ALIASES, alias_words
from workers.errors import ConfigError


def value(argument: str) -> object:
    """What Hydra reads for one argument."""
    (prepared,) = prepare([argument])
    return OverridesParser.create().parse_override(prepared).value()


@pytest.mark.parametrize(
    "text",
    [
        "2026_11_28", "1e5", "0x10", "1:30", "on", "off", "yes", "true", "1", "1.50", "-1", "~",
        "run é", "a,b", "a=b", "f(x)", "(", "[a]", "{a}", "[", "it's", 'a"b', "a\\b", "a\\", "a\\'",
        "a b", " a", "C:\\x", "ü/ß", "#1", "a;b", "*", "?", "!", "&", "%", "@", "^", "'", '"',
        "null.d",
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["run.dir", "model.checkpoints.base", "data.sets.hh.path"])
def test_a_text_stays_as_it_was_typed(key: str, text: str):
    if key.startswith("data.sets") and text[0] in "[{":
        return  # a list or mapping of columns
    assert value(f"{key}={text}") == text


def test_what_is_quoted_already_is_read_as_hydra_reads_it():
    assert value("run.dir='a b'") == "a b"
    assert value('run.dir="a,b"') == "a,b"
    assert prepare(["run.dir=outputs/${experiment}"]) == ["run.dir='outputs/${experiment}'"]
    assert value("resume=null") is None
    assert value("resume=") == ""


def test_names_in_a_list_stay_as_typed():
    assert value("model.lora.target=[1e5, 2026_1,'a b']") == ["1e5", "2026_1", "a b"]
    assert value("model.freeze=[]") == []


def test_the_folder_of_a_sweep_is_run_dir():
    arguments = ["-m", "run.dir=2026_11_28", "seed=1,2"]
    assert prepare(arguments) == ["-m", "seed=1,2", "hydra.sweep.dir='2026_11_28'"]
    assert prepare(["--multirun", "model.checkpoints.base=1_0,b"]) == [
        "--multirun", "model.checkpoints.base='1_0','b'",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--experiment", "x"], ["no flag --experiment", "+experiment=x"]),
        (["-experiment=x"], ["no flag -experiment", "+experiment=x"]),
        (["experiment=x"], ["+experiment=x"]),
        (["experiment", "pocket"], ["write +experiment=pocket"]),
        (["pocket"], ["write +experiment=pocket"]),
        (["--plan-only"], ["run.plan_only=true"]),
        (["--seed", "3"], ["write seed=3"]),
        (["--output_dir", "x"], ["run.dir"]),
        (["--nonsense"], ["no flag --nonsense"]),
        (["algorithm=null"], ["chooses no option", "instructgpt_paper"]),
        (["cluster="], ["chooses no option", "one_gpu"]),
        (["+experiment="], ["chooses no option", "pocket_tiny"]),
        (["+cluster=one_gpu"], ["is written cluster=one_gpu"]),
        (["cluster=[a,b]"], ["one option at a time"]),
        (["+experiment=pocket,pocket_tiny"], ["one option at a time", "one of them; or add -m"]),
        (["trainer=zero1,zero9"], ["one option at a time", "one of ", "zero1_bf16"]),
        (["~run"], ["cannot be removed"]),
        (["~algorithm"], ["cannot be removed"]),
        (["=x"], ["names no key"]),
        (["a=b=c"], ["unknown key a"]),
        (["algorithm.lr=["], ["unknown key algorithm.lr", "policy_optimizer.learning_rate"]),
        (["seed =1"], ["space before or after the =", "seed=1"]),
        (["seed", "=", "1"], ["no space around ="]),
        (["seed", "1"], ["write seed=1"]),
        (["run.dir=a", "b"], ["'run.dir=a b'"]),
        (["seed=1,"], ["whole number", "leave out the comma", "seed=1"]),
        (["logger.live=2"], ["neither on nor off", "true or false"]),
        (["seed=1,2"], ["several values", "-m"]),
        (["seed=é"], ["whole number"]),
        (["seed=" + "1" * 5000], ["cannot be read", "whole number"]),
        (["seed=" + "[" * 3000], ["cannot be read"]),
        (["run.dir=" + "a" * 70_000], ["70,008 characters"]),
        (["stages=sft,ppo"], ["is no list", "'stages=[sft,ppo]'"]),
        (["stages=[sft"], ["a list", "'stages=[sft]'"]),
        (["trainer.precision=fp32)"], ["one of fp32, bf16"]),
        (["\u201crun.dir=a\u201d"], ["typographic quotation mark"]),
        (["run.dir=\u2018a\u2019"], ["typographic quotation mark"]),
        (["\u2013\u2013help"], ["typographic dash"]),
        (["run.dir\uff1da"], ["wide equals sign"]),
        (["se\u200bed=1"], ["U+200B"]),
        ([""], ["is empty"]),
        (["hydra.run.dir=x"], ["write run.dir=x"]),
        (["hydra.job.chdir=true"], ["run.dir"]),
        (["--cfg"], ["needs a value"]),
        (["--cfg", "jobb"], ["job, hydra, all"]),
        (["--config-path", "x"], ["+rerun=x"]),
        (["--config-name", "config", "--config-dir", "."], ["+rerun="]),
        (["--config-dir", "nowhere"], ["no such folder"]),
        (["--experimental-rerun", "x"], ["+rerun=FOLDER"]),
        (["-m", "run.dir=a,b"], ["one folder"]),
        (["-m", "run.dir=a", "hydra.sweep.dir=b"], ["run.dir alone"]),
    ],
)
def test_what_means_nothing_is_refused_and_shown_as_it_is_written(
    arguments: list[str], words: list[str]
):
    with pytest.raises(ConfigError) as caught:
        prepare(arguments)
    assert all(each in str(caught.value) for each in words), str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_saved_configuration_is_sent_to_rerun(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("stages: [sft]\n")
    with pytest.raises(ConfigError) as caught:
        prepare(["--config-dir", str(tmp_path), "--config-name", "config"])
    assert f"+rerun={tmp_path}" in caught.value.fix


def test_flags_that_work_pass_as_they_are():
    lines = ("--help", "--cfg job --resolve", "--info defaults", "-m", "--cfg=job", "--info",
             "--hydra-help", "-c job -p sft")  # fmt: skip
    for line in lines:
        assert prepare(line.split()) == line.split()


def test_the_flags_are_those_of_the_installed_hydra():
    assert set(FLAGS) == set(get_args_parser()._option_string_actions)


def test_a_set_may_be_taken_away():
    assert prepare(["~data.sets.hh"]) == ["~data.sets.hh"]


FOREIGN = [
    "lr",
    "learning_rate",
    "batch_size",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_new_tokens",
    "max_length",
    "epochs",
    "num_train_epochs",
    "kl_coef",
    "init_kl_coef",
    "kl_penalty",
    "output_dir",
    "temperature",
    "top_p",
    "gamma",
    "lam",
    "cliprange",
    "vf_coef",
    "rollout_batch_size",
    "num_gpus",
    "model_name_or_path",
    "reward_model_path",
    "dataset",
    "tokenizer",
    "bf16",
    "wandb_project",
    "warmup_ratio",
    "ppo_epochs",
    "target_kl",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_names_are_answered_with_ours(name: str):
    error = unknown_key(name)
    assert error.what == f"unknown key {name}"
    assert error.fix == alias_words(name) != ""


def test_aliases_name_keys_that_there_are():
    named = {key for alias in ALIASES.values() for key in alias.keys}
    assert named <= set(schema_keys())
    assert all(alias.words() for alias in ALIASES.values())


def test_a_foreign_name_in_a_section_is_answered_from_that_section():
    assert alias_words("sft.lr") == (
        "set sft.optimizer.learning_rate (the peak of the schedule; each stage has its own)"
    )
    assert "trainer.micro_batch_tokens" in unknown_key("trainer.gradient_accumulation_steps").fix
    assert "algorithm.gamma" in unknown_key("algorithm.gama").fix

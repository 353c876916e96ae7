"""What a judge is told is checked before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from composing import composed

from orchestrator.config.cluster import RoleName
from orchestrator.config.evaluation import JudgeKind
from orchestrator.config.run import StageName
from orchestrator.planning.plan import make_plan
from orchestrator.preflight.user_functions import check_functions
from orchestrator.stages.judging import check_judge_ready
from workers.errors import ConfigError, MissingCheckpointError, TokenizerMismatchError
from workers.pocket.tokenizer import build_tokenizer

EVALUATE = ("+experiment=evaluate", "model.checkpoints.ppo=O", "data.files.evaluation_prompts=E")
ENDPOINT = (
    "judge=endpoint",
    "evaluate.endpoint.url=https://example.org/v1",
    "evaluate.endpoint.model=m",
)


def test_the_instruction_and_the_request_of_the_endpoint_are_in_conf():
    config = composed(*EVALUATE, *ENDPOINT)
    assert config.evaluate.judge is JudgeKind.endpoint
    assert "[[A]]" in config.evaluate.endpoint.instruction
    (stage,) = make_plan(config).stages
    assert stage.name is StageName.evaluate
    assert RoleName.reward not in stage.roles


@pytest.mark.parametrize("judge", ["auto", "reward_model", "none", "human", "function"])
def test_only_judges_of_texts_take_the_answers_of_an_earlier_evaluation(judge: str):
    told = {
        "human": ["evaluate.verdicts=v.jsonl"],
        "function": ["evaluate.judge_function=a:b"],
        "reward_model": ["evaluate.judge_checkpoint=J"],
    }
    config = composed(*EVALUATE, f"judge={judge}", *told.get(judge, []), "evaluate.answers=a.jsonl")
    if judge in ("auto", "reward_model"):
        with pytest.raises(ConfigError, match=f"judge={judge} scores the tokens") as caught:
            make_plan(config)
        assert caught.value.where == "evaluate.answers"
    else:
        make_plan(config)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("evaluate.endpoint.url=example.org/v1", "no plain http"),
        ("evaluate.endpoint.url=https://me:sk-123@example.org/v1", "no plain http"),
        ("evaluate.endpoint.url=https://example.org/v1?key=sk-123", "no plain http"),
        ("evaluate.endpoint.url=https://example.org/v1#sk-123", "no plain http"),
        ("evaluate.endpoint.url=http://[::1/v1", "no plain http"),
        ("evaluate.endpoint.url=http://example.org:abc/v1", "no plain http"),
        ("evaluate.endpoint.url=http://example.org:99999/v1", "no plain http"),
        ("evaluate.endpoint.url=http://example.org:0/v1", "no plain http"),
        ("evaluate.endpoint.url='http://exam ple.org/v1'", "no plain http"),
        ("evaluate.endpoint.url=''", "no address"),
        ("evaluate.endpoint.model=''", "no model is named as the judge"),
        ("evaluate.endpoint.instruction='{prompt} {first}'", r"lacks \{second\}"),
        ("evaluate.endpoint.request='[1]'", "no JSON object"),
    ],
)
def test_an_endpoint_that_makes_no_sense(override: str, says: str):
    with pytest.raises(ConfigError, match=says) as caught:
        make_plan(composed(*EVALUATE, *ENDPOINT, override))
    assert "sk-123" not in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("url", ["http://[::1]:8000/v1", "http://localhost:8000/v1"])
def test_addresses_that_are_fine(url: str):
    make_plan(composed(*EVALUATE, *ENDPOINT, f"evaluate.endpoint.url={url}"))


def test_a_secret_in_the_address_is_refused_where_nobody_judges():
    url = "evaluate.endpoint.url=https://example.org/v1?key=sk-123"
    with pytest.raises(ConfigError, match="no plain http") as caught:
        make_plan(composed("+experiment=pocket", "stages=[pretrain]", url))
    assert "sk-123" not in str(caught.value)


def test_a_judging_reward_model_must_come_from_somewhere():
    with pytest.raises(ConfigError, match="the judge is a reward model"):
        make_plan(composed(*EVALUATE, "judge=reward_model"))
    config = composed(*EVALUATE, "judge=reward_model", "evaluate.judge_checkpoint=nowhere")
    (stage,) = make_plan(config).stages
    assert RoleName.reward in stage.roles
    with pytest.raises(MissingCheckpointError):
        check_judge_ready(config, build_tokenizer())


def test_a_function_must_be_named_and_found():
    with pytest.raises(ConfigError, match="does not name a function"):
        make_plan(composed(*EVALUATE, "judge=function"))
    config = composed(*EVALUATE, "judge=function", "evaluate.judge_function=no_such_one:f")
    make_plan(config)
    with pytest.raises(ConfigError, match="there is no module 'no_such_one'") as caught:
        check_functions(config)
    assert caught.value.where == "evaluate.judge_function"


def test_the_key_must_be_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    config = composed(*EVALUATE, *ENDPOINT, "evaluate.endpoint.key_variable=A_JUDGE_KEY")
    monkeypatch.delenv("A_JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="A_JUDGE_KEY is not set"):
        check_judge_ready(config, build_tokenizer())
    monkeypatch.setenv("A_JUDGE_KEY", "sk-\u20ac")
    with pytest.raises(ConfigError, match="holds no key") as caught:
        check_judge_ready(config, build_tokenizer())
    assert "sk-" not in str(caught.value)
    monkeypatch.setenv("A_JUDGE_KEY", "sk-1\n")
    check_judge_ready(config, build_tokenizer())
    config.evaluate.endpoint.key_variable = ""
    check_judge_ready(config, build_tokenizer())


def test_a_judge_of_other_words_is_refused_before_anything_trains(tmp_path: Path):
    other = build_tokenizer()
    other.eos_token = "fox"
    other.save_pretrained(tmp_path / "other")
    build_tokenizer().save_pretrained(tmp_path / "same")
    for folder in ("other", "same"):  # as much of a checkpoint as is looked at
        (tmp_path / folder / "config.json").write_text("{}")
        (tmp_path / folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")

    def check(*overrides: str) -> None:
        check_judge_ready(composed(*EVALUATE, *overrides), build_tokenizer())

    judges = f"evaluate.judge_checkpoint={tmp_path / 'other'}"
    rewards = f"model.checkpoints.reward_model={tmp_path / 'other'}"
    for given in (("judge=reward_model", judges), ("judge=reward_model", rewards), (rewards,)):
        with pytest.raises(TokenizerMismatchError, match="another tokenizer") as caught:
            check(*given)
        assert "reward.bridge=text" in caught.value.fix
        check(*given, "reward.bridge=text")
    check("judge=reward_model", f"evaluate.judge_checkpoint={tmp_path / 'same'}", rewards)
    check("judge=none", rewards)
    check(rewards, "stages=[reward_model,evaluate]")  # made anew, from a model that is judged

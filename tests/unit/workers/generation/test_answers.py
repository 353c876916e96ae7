"""Answers of a model folder: the tokens asked, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.chat import byte_tokenizer
from family_models import build_family

from workers.errors import ConfigError, MissingCheckpointError
from workers.generation import answers as module
from workers.generation.answers import answers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    build_family("llama", folder, byte_tokenizer())
    return str(folder)


def test_a_prompt_has_the_same_greedy_answer_alone_and_beside_longer_ones(model: str) -> None:
    prompts = ["hi", "a much longer prompt than the first", [{"role": "user", "content": "hi"}]]
    together = answers(model, prompts, 6, 0.0, 0)
    assert together == [answers(model, [prompt], 6, 0.0, 0)[0] for prompt in prompts]
    assert together[0] != together[2], "the chat template puts marks around a message"


def test_more_prompts_than_a_batch_keep_their_order(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["a", "bb", "ccc", "dddd", "eeeee"]
    whole = answers(model, prompts, 4, 0.0, 0)
    monkeypatch.setattr(module, "_BATCH", 2)
    assert answers(model, prompts, 4, 0.0, 0) == whole
    assert answers(model, [], 4, 0.0, 0) == []


def test_samples_follow_the_seed(model: str) -> None:
    first = answers(model, ["hi"] * 3, 8, 1.0, 0)
    assert answers(model, ["hi"] * 3, 8, 1.0, 0) == first
    assert answers(model, ["hi"] * 3, 8, 1.0, 1) != first
    assert len(set(first)) == 3


@pytest.mark.parametrize(
    ("prompts", "more", "what"),
    [("hi", {}, "one text"), ([[]], {}, "messages without"), ([""], {}, "without a token"),
     ([[{"role": "user"}]], {}, "messages without"), (["hi"], {"max_tokens": -1}, "out of range"),
     (["hi"], {"temperature": float("nan")}, "out of range"),
     (["hi"], {"temperature": -1.0}, "out of range")],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(model: str, prompts, more: dict, what: str) -> None:
    options = {"max_tokens": 4, "temperature": 0.0} | more
    with pytest.raises(ConfigError, match=what):
        answers(model, prompts, options["max_tokens"], options["temperature"], 0)


def test_a_dialogue_needs_a_template_and_a_model_needs_to_be_there(tmp_path: Path) -> None:
    build_family("llama", tmp_path / "bare", byte_tokenizer(template=None))
    with pytest.raises(ConfigError, match="no chat template"):
        answers(str(tmp_path / "bare"), [[{"role": "user", "content": "hi"}]], 4, 0.0, 0)
    with pytest.raises(MissingCheckpointError):
        answers(str(tmp_path / "none"), ["hi"], 4, 0.0, 0)

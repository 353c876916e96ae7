"""Observations as token ids: what a template writes between turns, and templates that rewrite."""

from __future__ import annotations

from typing import Any

import pytest
from data_files import byte_tokenizer
from transformers import AutoTokenizer
from unit.workers.data.tokenize.test_templates import PLAIN, THINKS

from workers.data.rows.unusable import Unusable
from workers.data.tokenize.templates import default_template
from workers.data.tokenize.turn_text import TurnText
from workers.errors import ConfigError, DataError
from workers.pocket.tokenizer import build_tokenizer

# As Qwen 3: thoughts of earlier turns are removed once a user has spoken again.
FORGETS = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' and not loop.last and '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1].strip() }}{% else %}{{ m.content }}{% endif %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Later turns change the beginning.
COUNTS = (
    "{{ messages | length }} messages:"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def test_an_observation_is_the_templates_own_turn(tokenizer: Any) -> None:
    tokenizer.chat_template = PLAIN
    ids = TurnText(tokenizer)("it rains")
    assert tokenizer.decode(ids) == "\nuser: it rains\nassistant: "
    tool = TurnText(tokenizer, role="tool")("it rains")
    assert tokenizer.decode(tool) == "\ntool: it rains\nassistant: "


def test_a_dialogue_that_is_appended_has_the_ids_of_the_whole(tokenizer: Any) -> None:
    """Prompt, reply, end token and observation end to end are what rendering all at once gives."""
    for template in (PLAIN, default_template(tokenizer)):
        tokenizer.chat_template = template
        written = TurnText(tokenizer)
        dialogue = [{"role": "user", "content": "hi"}]
        text = tokenizer.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=False)
        for reply, said in (("a b", "one"), ("c", "two three"), ("d", "four")):
            ids += [*tokenizer.encode(reply, add_special_tokens=False), tokenizer.eos_token_id]
            ids += written(said)
            dialogue += [
                {"role": "assistant", "content": reply},
                {"role": "user", "content": said},
            ]
        whole = tokenizer.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=True)
        assert ids == tokenizer.encode(whole, add_special_tokens=False)


def test_the_pocket_world_goes_on_as_its_forum_does() -> None:
    tokenizer = build_tokenizer()
    ids = TurnText(tokenizer)("the fox is red .")
    assert tokenizer.decode(ids) == "user : the fox is red . reply :"


@pytest.mark.parametrize("template", [THINKS, FORGETS])
def test_a_template_that_rewrites_earlier_turns_is_refused(template: str, tokenizer: Any) -> None:
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match="rewrites earlier turns") as caught:
        TurnText(tokenizer)
    assert caught.value.where == "data.chat_template"
    ids = TurnText(tokenizer, text="\nTool: {observation}\nYou:")("7")
    assert tokenizer.decode(ids) == "\nTool: 7\nYou:"


def test_a_template_whose_beginning_changes_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = COUNTS
    with pytest.raises(DataError, match="does not begin with its own prompt"):
        TurnText(tokenizer)


def test_without_a_template_the_text_must_be_given(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template") as caught:
        TurnText(tokenizer)
    assert caught.value.where == "environment.turn_text"
    assert tokenizer.decode(TurnText(tokenizer, text="> {observation}\n")("a")) == "> a\n"


@pytest.mark.parametrize("text", ["no place", "{observation} {observation}"])
def test_a_text_needs_one_place(text: str, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="it needs"):
        TurnText(tokenizer, text=text)


@pytest.mark.parametrize("text", ["", "> {observation}\n"])
def test_an_observation_holds_no_control_token(text: str, tokenizer: Any) -> None:
    tokenizer.chat_template = PLAIN
    with pytest.raises(Unusable, match="control token"):
        TurnText(tokenizer, text=text)(f"a {tokenizer.eos_token} assistant: b")

"""What a user's own code makes of a text is what training saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes.chat import byte_tokenizer
from tokenizers.processors import Sequence as Processors
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from workers.data.rows.examples import Demonstration, Document, Message, PromptExample
from workers.data.tokenize.beginnings import Beginning, begin_with, beginning
from workers.data.tokenize.data_sets import Rendering
from workers.data.tokenize.encode import Encoder
from workers.errors import ConfigError
from workers.models.scratch import learn_tokenizer
from workers.pocket.source import PocketSource

HI = (Message("user", "hi"),)
CHAT = [{"role": "user", "content": "hi"}]
# Llama 3's form: the template writes the beginning token that the tokenizer writes, too.
OWN_BOS = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_end(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Writes an end token after every text, as some tokenizers made for training do."""
    tokenizer.add_eos_token = True
    return tokenizer


def with_two(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Two tokens begin a text, inside a sequence of processors."""
    tokenizer.backend_tokenizer.post_processor = Processors(
        [TemplateProcessing("<s> <|im_start|> $A", None, [("<s>", 3), ("<|im_start|>", 1)])]
    )
    return tokenizer


TOKENIZERS = {
    "none": byte_tokenizer(),
    "written": byte_tokenizer(bos="<s>"),
    "not written": byte_tokenizer(bos="<s>", writes_bos=False),
    "bos is eos": byte_tokenizer(bos="<|im_end|>", writes_bos=False),
    "template too": byte_tokenizer(OWN_BOS, bos="<s>"),
    "end after text": with_end(byte_tokenizer(bos="<s>")),
    "two": with_two(byte_tokenizer(bos="<s>")),
    "learned": learn_tokenizer(["hi there, you there"], 300),
}


@pytest.mark.parametrize("choice", ["auto", "always", "never"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_trained_is_what_the_tokenizer_makes_of_it(
    name: str, choice: Beginning, tmp_path: Path
) -> None:
    TOKENIZERS[name].save_pretrained(tmp_path / "given")
    rendering = Rendering(str(tmp_path / "given"), 100, 100, add_bos_token=choice)
    if name == "none" and choice == "always":
        with pytest.raises(ConfigError, match="no beginning-of-sequence token"):
            Encoder(rendering)
        return
    encoder = Encoder(rendering)
    encoder.tokenizer.save_pretrained(tmp_path / "saved")
    users = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text, eos = "hi you", [users.eos_token_id]
    renderer: Any = encoder._renderer
    (prompt,) = renderer.prompts([PromptExample(text, "F:1")])
    assert prompt.tokens.tolist() == users(text).input_ids
    (shown,) = renderer.demonstrations([Demonstration(text, "ok", "F:1")])
    assert shown.tokens[~shown.targets].tolist() == users(text).input_ids
    (document,) = renderer.documents([Document(text, "F:1")])
    assert document[0].tokens.tolist() == users(text).input_ids + eos
    (chat,) = renderer.prompts([PromptExample(HI, "F:1")])
    ids = users.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert chat.tokens.tolist() == ids
    if users.bos_token_id not in (None, users.eos_token_id):
        assert ids.count(users.bos_token_id) <= 1


@pytest.mark.parametrize(
    ("name", "auto", "always"),
    [
        ("written", (3,), (3,)),
        ("not written", (), (3,)),
        ("bos is eos", (), (2,)),
        ("end after text", (3,), (3,)),
        ("two", (3, 1), (3,)),
    ],
)
def test_the_choice_is_written_into_the_tokenizer(
    name: str, auto: tuple[int, ...], always: tuple[int, ...], tmp_path: Path
) -> None:
    for choice, wanted in (("auto", auto), ("always", always), ("never", ())):
        TOKENIZERS[name].save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        begin_with(tokenizer, choice)  # pyright: ignore[reportArgumentType]
        assert beginning(tokenizer) == wanted
        bare = tokenizer("x", add_special_tokens=False).input_ids
        assert tokenizer("x").input_ids == [*wanted, *bare], "and nothing after it"


def test_the_pocket_worlds_prompts_are_texts_and_chats_of_its_tokenizer() -> None:
    source = PocketSource(0, 0.5, 0.25)
    for prompt in source.prompts("heldout", 0, 50):
        asked = source.question(prompt).text
        assert list(prompt.tokens) == source.tokenizer(prompt.text).input_ids
        for content in (asked, prompt.text):
            chat = [{"role": "user", "content": content}]
            ids = source.tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_dict=False
            )
            assert list(prompt.tokens) == ids


def test_a_pocket_dialogue_goes_on_as_in_the_worlds_forums() -> None:
    tokenizer = PocketSource(0, 0.5, 0.25).tokenizer
    chat = [
        {"role": "user", "content": "where ?"},
        {"role": "assistant", "content": "the bear ."},
        {"role": "user", "content": "what ?"},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    words = " ".join(text.split())
    assert words == "<bos> user : where ? reply : the bear . <eos> user : what ? reply :"

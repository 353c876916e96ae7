"""Prompts keep what was asked, word for word, beside the tokens that the policy sees."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_files import Files
from fakes.chat import byte_tokenizer

from workers.data.rows.asked import Asked, as_messages, plain_text
from workers.data.rows.examples import Message

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <end>"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye?"},
]
DIALOGUE = tuple(Message(turn["role"], turn["content"]) for turn in TURNS)  # type: ignore[arg-type]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    byte_tokenizer(bos="<s>").save_pretrained(tmp_path / "checkpoint")
    return Files(tmp_path, tmp_path / "checkpoint")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_prompt_carries_its_dialogue_whatever_the_template_made_of_it(
    files: Files, workers: int
) -> None:
    rows = [{"messages": TURNS}, {"prompt": "1 + 1 ="}, {"prompt": "<s>2 + 2 ="}]
    source = files(
        prompts=[{"prompt": "held out"}],
        evaluation_prompts=rows,
        prompt_limit=200,
        feeding={"workers": workers},
    )
    found = {prompt.key: prompt for prompt in source.prompts("heldout", 0, 3)}
    assert found[0].asked == Asked(0, DIALOGUE, found[0].text)
    assert found[0].text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert found[1].asked == Asked(1, "1 + 1 =", "1 + 1 =")
    assert found[2].asked == Asked(2, "2 + 2 =", "<s>2 + 2 =")


def test_plain_text_has_no_control_tokens_and_names_speakers_only_where_there_are_several() -> None:
    assert plain_text("1 + 1 =") == "1 + 1 ="
    assert plain_text((Message("user", "Hi"),)) == "Hi"
    assert plain_text(DIALOGUE) == (
        "System:\nBe brief.\n\nUser:\nHi <end>\n\nAssistant:\nHello.\n\nUser:\nBye?"
    )


def test_messages_are_fresh_at_every_call() -> None:
    assert as_messages(DIALOGUE) == TURNS
    as_messages(DIALOGUE)[0]["content"] = "changed"
    assert as_messages(DIALOGUE) == TURNS
    assert as_messages("1 + 1 =") == [{"role": "user", "content": "1 + 1 ="}]

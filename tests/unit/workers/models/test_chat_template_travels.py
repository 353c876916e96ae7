"""A run's own chat template goes into the checkpoints that its stages publish."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from data_files import byte_tokenizer
from fakes.session import Run
from fakes.toy import ToyPolicy

from workers.data.files import FileSource
from workers.data.tokenize.data_sets import DataSet, Feeding, Rendering, SetKind
from workers.data.tokenize.tokenizers import load_tokenizer
from workers.pocket.tokenizer import build_tokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{{ eos_token if m.role == 'assistant' else '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
CHAT = [{"role": "user", "content": "Why?"}]


def source_of(tmp_path: Path, template: str) -> FileSource:
    rows = [{"messages": [*CHAT, {"role": "assistant", "content": f"{i}."}]} for i in range(9)]
    # of two prompts the one of the larger hash is held out, which is this one
    rows.append({"messages": [{"role": "user", "content": "Where?"}, rows[0]["messages"][1]]})
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    checkpoint = byte_tokenizer(tmp_path / "bytes")
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    return FileSource(
        [DataSet("chat", SetKind.demonstrations, str(path))],
        Rendering(str(checkpoint), 100, 100, chat_template=template),
        Feeding(),
    )


def published(tmp_path: Path, source: FileSource, tokenizer: Path) -> Path:
    """What a stage publishes that saves `tokenizer` beside its weights."""
    run = Run(tmp_path / "run")
    run.session.source = source

    def save(path: str) -> None:
        ToyPolicy.create(8, 1).save(path)
        for file in tokenizer.iterdir():
            shutil.copy(file, path)

    return run.session.publish("sft", save, "sft")


def test_later_stages_and_users_render_as_the_model_was_trained(tmp_path: Path) -> None:
    source = source_of(tmp_path, str(tmp_path / "own.jinja"))
    folder = published(tmp_path, source, tmp_path / "bytes")
    tokenizer = load_tokenizer(folder)
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text == "[user] Why?\n[assistant] "
    row = source.demonstrations("train", 0, 1)
    prompt = row.tokens.values[~row.targets.values]
    assert source.detokenize(prompt) == text
    assert "chat_template.jinja" in (folder / "rehearsal.json").read_text(), "hashed like the rest"


def test_another_tokenizer_keeps_its_own_template(tmp_path: Path) -> None:
    source = source_of(tmp_path, "default")
    build_tokenizer().save_pretrained(tmp_path / "other")
    folder = published(tmp_path, source, tmp_path / "other")
    assert load_tokenizer(folder).chat_template == build_tokenizer().chat_template


@pytest.mark.parametrize("own", [True, False])
def test_the_tokenizers_own_template_is_not_written_again(tmp_path: Path, own: bool) -> None:
    source = source_of(tmp_path, "default")
    assert source.tokenizer.chat_template
    source.tokenizer.save_pretrained(tmp_path / "bytes")
    again = FileSource([], Rendering(str(tmp_path / "bytes"), 9, 9, "auto" if own else "default"),
                       Feeding())  # fmt: skip
    assert again.tokenizer.chat_template == source.tokenizer.chat_template

"""What a run on files takes from the checkpoints that are given, and says about the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from orchestrator.config.data import DataConfig, DataSourceKind, FilesConfig
from orchestrator.config.schema import Config
from orchestrator.session.sources import left_out, make_source
from workers.errors import TokenizerMismatchError
from workers.pocket.tokenizer import build_tokenizer


@pytest.fixture
def config(tmp_path: Path) -> Config:
    lines = [{"prompt": text} for text in ("the fox ?", "the fox ?", "the owl ?", " ")]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = FilesConfig(prompts=str(file), max_prompt_tokens=8)
    return Config(data=DataConfig(source=DataSourceKind.files, files=files))


def saved(folder: Path, end: str = "") -> str:
    """The pocket world's tokenizer, with another end token if it is named."""
    tokenizer = build_tokenizer()
    if end:
        tokenizer.eos_token = end
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(folder)
    return str(folder)


def test_the_reward_models_tokenizer_does_not_read_the_files(config: Config, tmp_path: Path):
    given = {"reward_model": saved(tmp_path / "rm", "fox"), "ppo": saved(tmp_path / "ppo")}
    assert make_source(config, given).tokenizer.eos_token != "fox"


def test_models_of_other_tokenizers_are_not_compared(config: Config, tmp_path: Path):
    given = {"base": saved(tmp_path / "base"), "ppo": saved(tmp_path / "ppo", "fox")}
    with pytest.raises(TokenizerMismatchError, match="base and ppo do not share a tokenizer"):
        make_source(config, given)


def test_rows_that_were_left_out_are_told(config: Config, tmp_path: Path):
    notes = left_out(make_source(config, {"sft": saved(tmp_path / "sft")}))
    assert "left out 1 row of prompts: repeated" in notes
    assert any("empty prompt" in note for note in notes)

"""Load the tokenizers of checkpoint folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from workers.data.tokenize.beginnings import Beginning, begin_with
from workers.data.tokenize.templates import template_source
from workers.errors import DataError, MissingCheckpointError
from workers.model_folders.files import read_json
from workers.process.library_errors import reading

if TYPE_CHECKING:  # seconds to import
    from transformers import PreTrainedTokenizerBase

_FIX = "save the tokenizer in the model's folder (tokenizer.save_pretrained)"
_FILE = "tokenizer.json"
_MOST_IDS = 1 << 24


def load_tokenizer(checkpoint: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local checkpoint folder; nothing is downloaded.

    Raises:
        MissingCheckpointError: If there is no such folder.
        BrokenCheckpointError: If the folder holds no tokenizer that transformers can read.
        DataError: If the tokenizer has no end-of-sequence token, without which no model can learn
            to stop.
    """
    from transformers import AutoTokenizer  # seconds to import, with torch and every model

    path = Path(checkpoint)
    if not path.is_dir():
        raise MissingCheckpointError(
            "no checkpoint folder", where=str(path), fix="give a Hugging Face folder on this disk"
        )
    _refuse_far_ids(path)
    with reading(path, "no readable tokenizer", _FIX):  # transformers reads config.json, too
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        tokenizer("a")  # some settings are first checked in a call
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the tokenizer has no end-of-sequence token",
            where=str(path),
            fix="set eos_token in tokenizer_config.json",
        )
    return tokenizer


def _refuse_far_ids(folder: Path) -> None:
    """Refuse a very large id, because the library would allocate space for every id up to it."""
    if not (folder / _FILE).exists():
        return
    with reading(folder, f"{_FILE} is no tokenizer", _FIX):
        content = read_json(folder / _FILE)
        words = content["model"].get("vocab") or {}
        ids = list(words.values()) if isinstance(words, dict) else [len(words)]
        ids += [token["id"] for token in content.get("added_tokens") or ()]
        largest = max(ids, default=0)
        if largest > _MOST_IDS:
            raise ValueError(f"the id {largest:,}, where no model has {_MOST_IDS:,} words")


def load_speaker(
    checkpoint: str | Path, template: str = "auto", add_bos_token: Beginning = "auto"
) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, configured as the run trains with it and publishes it.

    Args:
        checkpoint: Hugging Face folder.
        template: "auto" = the tokenizer's own chat template, "default" = the built-in one, else the
            path of a Jinja file.
        add_bos_token: What the tokenizer adds before a text.

    Raises:
        MissingCheckpointError, BrokenCheckpointError, DataError: As `load_tokenizer`.
        DataError: If the template cannot be read.
        ConfigError: If the tokenizer cannot be set to add this before a text.
    """
    tokenizer = load_tokenizer(checkpoint)
    begin_with(tokenizer, add_bos_token)
    source = template_source(template, tokenizer)
    if source is not None:
        tokenizer.chat_template = source
    return tokenizer


def token_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the highest id of a tokenizer."""
    return max(tokenizer.get_vocab().values()) + 1


def detokenize(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> str:
    """Text of token ids, special tokens left out."""
    text = tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
    assert isinstance(text, str)
    return text

"""Tokenizers of checkpoint folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workers.data.fingerprint import tokenizer_fingerprint
from workers.errors import BrokenCheckpointError, DataError, MissingCheckpointError
from workers.model_shape import unreadable


def load_tokenizer(checkpoint: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local checkpoint folder; nothing is downloaded.

    Raises:
        MissingCheckpointError: If there is no such folder.
        BrokenCheckpointError: If the folder holds no tokenizer that transformers can read.
        DataError: If the tokenizer has no end-of-sequence token, without which no model can learn
            to stop.
    """
    path = Path(checkpoint)
    if not path.is_dir():
        raise MissingCheckpointError(
            "no checkpoint folder", where=str(path), mend="give a Hugging Face folder on this disk"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except unreadable() as error:  # config.json is read along
        raise BrokenCheckpointError(
            f"no readable tokenizer: {error}",
            where=str(path),
            mend="save the tokenizer beside the model (tokenizer.save_pretrained)",
        ) from error
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the tokenizer has no end-of-sequence token",
            where=str(path),
            mend="set eos_token in tokenizer_config.json",
        )
    return tokenizer


def dress(folder: str | Path, speaks: PreTrainedTokenizerBase, template: str) -> None:
    """Make `template` the chat template of a checkpoint's tokenizer.

    Args:
        folder: Checkpoint folder with a tokenizer.
        speaks: The tokenizer that the template was used with; a folder of another one (a reward
            model of another family) is left as it is, for the template may name tokens of `speaks`.
        template: Jinja.
    """
    tokenizer = load_tokenizer(folder)
    if tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(speaks):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)


def detokenize(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> str:
    """Text of token ids, special tokens left out."""
    text = tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
    assert isinstance(text, str)
    return text

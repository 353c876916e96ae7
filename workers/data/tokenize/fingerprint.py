"""Fingerprints of tokenizers, to check that two checkpoints share their token ids."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # seconds to import, and only a type here
    from transformers import PreTrainedTokenizerBase


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash the meaning of token ids: the vocabulary (added tokens included) and the special ids.

    Two tokenizers with equal fingerprints can exchange token ids. How they split text is not part
    of the hash: it changes which ids a text becomes, never what an id means.

    Returns:
        64 hexadecimal digits, equal on every machine.
    """
    meaning = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": {
            name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")
        },
    }
    return sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()

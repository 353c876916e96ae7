"""Whether two checkpoints mean the same by the same token ids."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # seconds to import, and only a type here
    from transformers import PreTrainedTokenizerBase


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash what token ids mean: the vocabulary (added tokens included) and the special ids.

    Two tokenizers of equal fingerprint can exchange token ids. How they split text is left out:
    it changes which ids a text becomes, never what an id stands for.

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

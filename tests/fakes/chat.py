"""Tokenizers of one token a byte, small enough to be read back by eye."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>")


def byte_tokenizer(
    template: str | None = CHATML,
    *,
    eos: str = "<|im_end|>",
    bos: str | None = None,
    writes_bos: bool = True,
) -> PreTrainedTokenizerFast:
    """One id a byte, and one for each of `SPECIAL`; `bos` begins every text if it is written."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=eos,
        bos_token=bos,
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL),
    )
    if bos and writes_bos:
        tokenizer.add_bos_token = True
    tokenizer.chat_template = template
    return tokenizer

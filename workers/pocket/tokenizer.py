"""The pocket world's word-level tokenizer, as ordinary Hugging Face files."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from workers.pocket.words import BOS, EOS, PAD, UNK, VOCABULARY


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: one id a word, in the order of `words.VOCABULARY`.

    Encoding adds no special token. Decoding joins words with one space, so a text of the world
    survives the round trip unchanged.
    """
    vocabulary = {word: i for i, word in enumerate(VOCABULARY)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )

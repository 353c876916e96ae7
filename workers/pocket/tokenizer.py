"""The pocket world's word-level tokenizer, as ordinary Hugging Face files."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from workers.data.tokenize.beginnings import begin_with
from workers.pocket.words import BOS, EOS, PAD, UNK, vocabulary_of

# A dialogue in the style of the world's forums: the user asks, the assistant replies. A prompt that
# already has this form ("user : ... reply :") is unchanged.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% set text = message['content'] | trim %}"
    "{% if message['role'] == 'user' %}"
    "{% set text = text[6:] if text.startswith('user :') else text %}"
    "{% set text = text[:-7] if text.endswith('reply :') else text %}"
    "{{ ' user : ' + text | trim }}"
    "{% elif message['role'] == 'assistant' %}{{ ' reply : ' + text + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('the pocket world knows users and assistants only') }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' reply :' }}{% endif %}"
)


def build_tokenizer(*, arithmetic: bool = False) -> PreTrainedTokenizerFast:
    """Build the tokenizer: one id per word, in the order of `words.vocabulary_of`.

    A text begins with the beginning token, as in every stage of the recipe. Decoding joins words
    with one space, which restores texts of the world exactly.
    """
    vocabulary = {word: i for i, word in enumerate(vocabulary_of(arithmetic=arithmetic))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        padding_side="left",  # generated tokens directly follow the prompt
    )
    begin_with(tokenizer, "always")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer

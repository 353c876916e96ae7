"""New models of any family with random weights, and tokenizers learned from the user's text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from workers.data.tokenize.beginnings import begin_with
from workers.data.tokenize.templates import default_template
from workers.errors import ConfigError, EmptyDatasetError

logging.disable_progress_bar()

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
SMALLEST_VOCABULARY = 260  # every byte, the three special tokens, and one pair


@dataclass(frozen=True, slots=True)
class ScratchShape:
    """The size of a model; the names in config.json depend on the family."""

    family: str  # transformers' model_type: llama, qwen3, gpt_neox, gpt2, mistral, ...
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    positions: int
    intermediate_size: int
    tie_word_embeddings: bool


def learn_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE, which can encode text of any language.

    It puts the beginning token before every text, in training and for users of the model.

    Args:
        texts: Text to learn from; read once, in batches.
        vocabulary: Number of tokens, bytes and special tokens included; the result has fewer if the
            text has too few distinct pairs.

    Raises:
        ConfigError: If the vocabulary cannot hold every byte.
        EmptyDatasetError: If there is no text.
    """
    if vocabulary < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"a vocabulary of {vocabulary} cannot hold every byte and the special tokens",
            where="vocabulary",
            fix=f"ask for {SMALLEST_VOCABULARY} tokens or more",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_not_empty(texts), trainer)
    learned = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",  # generated tokens directly follow the prompt
    )
    begin_with(learned, "always")
    learned.chat_template = default_template(learned)
    return learned


def strings_of(fields: Mapping[str, object]) -> Iterator[str]:
    """Every text of a row, at any nesting depth."""
    for value in fields.values():
        yield from _strings(value)


def create_scratch_model(
    path: str | Path, shape: ScratchShape, tokenizer: PreTrainedTokenizerFast, seed: int
) -> int:
    """Write a randomly initialised causal language model as an ordinary Hugging Face folder.

    The same seed writes the same float32 weights; the caller's random state is unchanged.

    Returns:
        Number of parameters.

    Raises:
        ConfigError: If transformers knows no such family, or the family refuses the shape.
    """
    config = _config(shape, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            causal = _is_causal(model)
        except Exception as error:
            words = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"no causal language model of this shape: {type(error).__name__}: {words}",
                where=f"family {shape.family}",
                fix="choose another family or other sizes",
            ) from error
    if not causal:
        raise ConfigError(
            "in this model family a token attends to later ones: it cannot be trained to "
            "continue a text",
            where=f"family {shape.family}",
            fix="choose a decoder such as llama, qwen3, gpt_neox or gpt2",
        )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def _is_causal(model: torch.nn.Module) -> bool:
    """Whether the logits of a token stay the same when the next token changes."""
    training = model.training
    ids = torch.tensor([[3, 4], [3, 5]])
    first = model.eval()(input_ids=ids).logits[:, 0]
    model.train(training)
    return bool(torch.allclose(first[0], first[1], atol=1e-5))


def _config(shape: ScratchShape, tokenizer: PreTrainedTokenizerFast) -> object:
    if shape.hidden_size % shape.heads or shape.heads % shape.kv_heads:
        raise ConfigError(
            f"width {shape.hidden_size}, {shape.heads} heads, {shape.kv_heads} key-value heads",
            where="shape",
            fix="the width must be a multiple of the heads, and the heads of the key-value heads",
        )
    wanted = {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden_size // shape.heads,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.positions,
        "tie_word_embeddings": shape.tie_word_embeddings,
        # The usual 0.02 suits widths in the thousands; it would make a narrow model almost linear.
        "initializer_range": max(0.02, shape.hidden_size**-0.5 / 2),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        plain = AutoConfig.for_model(shape.family)
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"transformers knows no family {shape.family!r}",
            where="family",
            fix="give a model_type such as llama, qwen3, gpt_neox or gpt2",
        ) from error
    known = {name: value for name, value in wanted.items() if hasattr(plain, name)}
    try:
        return AutoConfig.for_model(shape.family, **known)
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"the family refuses these sizes: {type(error).__name__}: {words}",
            where=f"family {shape.family}",
            fix="choose another family or other sizes",
        ) from error


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from strings_of(value)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _not_empty(texts: Iterable[str]) -> Iterator[str]:
    found = False
    for text in texts:
        found = found or bool(text)
        yield text
    if not found:
        raise EmptyDatasetError(
            "there is no text to learn a tokenizer from",
            where="texts",
            fix="give data files that hold text",
        )

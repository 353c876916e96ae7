"""Randomly initialised Llama models for the pocket world."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workers.pocket.tokenizer import build_tokenizer
from workers.pocket.words import BOS, EOS, PAD, VOCABULARY, vocabulary_of


def create_model(
    path: str | Path,
    *,
    hidden_size: int,
    layers: int,
    heads: int,
    kv_heads: int,
    intermediate_size: int,
    max_position_embeddings: int,
    tie_word_embeddings: bool,
    seed: int,
    arithmetic: bool = False,
) -> int:
    """Write a randomly initialised model as an ordinary Hugging Face folder.

    The folder holds config, safetensors weights (float32), generation config and tokenizer; the
    same seed writes the same weights, and the caller's random state is unchanged.

    Args:
        path: Folder to write; created if missing.
        hidden_size: Width; a multiple of `heads`.
        layers: Transformer layers.
        heads: Attention heads; a multiple of `kv_heads`.
        kv_heads: Key and value heads.
        intermediate_size: Width of the feed-forward layers.
        max_position_embeddings: Longest sequence in tokens.
        tie_word_embeddings: Whether input and output embeddings are one matrix.
        seed: Seed of the weights.
        arithmetic: Whether the vocabulary is that of a world of sums.

    Returns:
        Number of parameters.
    """
    config = LlamaConfig(
        vocab_size=len(vocabulary_of(arithmetic=arithmetic)),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=tie_word_embeddings,
        # The usual 0.02 suits widths in the thousands; it would make a narrow model almost linear,
        # with nearly uniform attention for hundreds of steps.
        initializer_range=hidden_size**-0.5,
        pad_token_id=VOCABULARY.index(PAD),
        bos_token_id=VOCABULARY.index(BOS),
        eos_token_id=VOCABULARY.index(EOS),
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(path)
    build_tokenizer(arithmetic=arithmetic).save_pretrained(path)
    return sum(p.numel() for p in model.parameters())

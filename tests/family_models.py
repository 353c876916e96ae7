"""Tiny random language models of many families, as ordinary Hugging Face folders.

Each family stands for something that a weight transfer can get wrong: grouped queries, biases,
transposed matrices, fused projections, experts, tied output layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from workers.pocket.tokenizer import build_tokenizer

POSITIONS = 64
WINDOW = 8  # tokens: shorter than the sequences, so that a window that is not honoured shows


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture, and what is special about it."""

    config: Callable[..., PreTrainedConfig]
    settings: dict[str, Any]
    tied: bool
    head: str  # of its token-classification class; "" = it has none
    attention: str = "sdpa"  # the trainer's; not every family computes itself right with each
    tolerance: float = 1e-4  # nats between vLLM and transformers


def _wide(**more: Any) -> dict[str, Any]:
    """Width 128; heads of 32, the smallest that vLLM computes on a CPU; two queries a key."""
    return {
        "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS, **more,
    }  # fmt: skip


def _narrow(**more: Any) -> dict[str, Any]:
    """The same heads at width 64, for families that let the two differ."""
    return _wide(hidden_size=64, head_dim=32, **more)


EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
    "decoder_sparse_step": 1, "norm_topk_prob": True,
}  # fmt: skip


FAMILIES = {
    "llama": Family(LlamaConfig, _narrow(), tied=False, head="score"),
    "qwen2": Family(
        Qwen2Config, _wide(), tied=True, head="score"
    ),
    "qwen3": Family(Qwen3Config, _narrow(), tied=True, head="score"),
    "mistral": Family(
        MistralConfig, _narrow(sliding_window=WINDOW), tied=False, head="score"
    ),
    "mixtral": Family(
        MixtralConfig,
        _narrow(num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
        tied=False,
        head="score",
    ),
    "qwen3_moe": Family(Qwen3MoeConfig, _narrow(**EXPERTS), tied=False, head="score"),
    "qwen2_moe": Family(
        Qwen2MoeConfig,
        _wide(shared_expert_intermediate_size=64, **EXPERTS),
        tied=False,
        head="score",
    ),
    "gemma": Family(GemmaConfig, _narrow(), tied=True, head="score"),
    "gemma2": Family(
        Gemma2Config,
        _narrow(sliding_window=WINDOW, query_pre_attn_scalar=32),
        tied=True,
        head="score",
        attention="eager",  # the others leave out the cap on its attention scores
    ),
    "phi3": Family(
        Phi3Config,
        _wide(original_max_position_embeddings=POSITIONS),
        tied=False,
        head="score",
    ),
    "gpt2": Family(
        GPT2Config,
        {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS},
        tied=True,
        head="classifier",
    ),
    "gpt_neox": Family(
        GPTNeoXConfig,
        {
            "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": POSITIONS,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25,
            },
        },
        tied=False,
        head="classifier",
    ),
    "bloom": Family(
        BloomConfig,
        {"hidden_size": 64, "n_layer": 2, "n_head": 2},
        tied=True,
        head="classifier",
        attention="eager",  # its ALiBi has no other
        tolerance=1e-3,  # the libraries approximate GELU in two ways
    ),
    "falcon": Family(
        FalconConfig,
        {
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True,
            "bias": False, "max_position_embeddings": POSITIONS,
        },
        tied=True,
        head="classifier",
    ),
    "opt": Family(
        OPTConfig,
        {
            "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
            "word_embed_proj_dim": 64, "max_position_embeddings": POSITIONS, "dropout": 0.0,
        },
        tied=True,
        head="",
    ),
}  # fmt: skip


def family_config(name: str, tokenizer: PreTrainedTokenizerBase, **more: Any) -> PreTrainedConfig:
    """The family's configuration with the tokenizer's vocabulary and special ids."""
    family = FAMILIES[name]
    return family.config(
        **{
            "vocab_size": len(tokenizer), "tie_word_embeddings": family.tied,
            "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id, "initializer_range": 0.12,
            "dtype": "float32", **family.settings, **more,
        }
    )  # fmt: skip


def build_family(
    name: str,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    seed: int = 0,
    **more: Any,
) -> Path:
    """Write a random model of a family, with its tokenizer; `more` overrides its configuration.

    Every parameter is drawn, biases and norms too: what starts at zero or one would look right
    even if it never travelled.
    """
    tokenizer = tokenizer or build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(family_config(name, tokenizer, **more))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

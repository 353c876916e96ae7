"""The plan's sizes of models, against transformers' own models without weights (device meta)."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
import torch
from family_models import FAMILIES, family_config
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, PreTrainedConfig

from orchestrator.planning.model_sizes import ModelSize, checkpoint_size
from workers.pocket.tokenizer import build_tokenizer

TOKENS = 3


def hollow(config: PreTrainedConfig) -> torch.nn.Module:
    with torch.device("meta"):  # experts have no other precision there
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval()


def folder_of(model: torch.nn.Module, config: PreTrainedConfig, folder: Path) -> Path:
    """The model's folder as the plan sees it: headers, and a file with a hole for the weights."""
    config.save_pretrained(folder)
    header, end = {}, 0
    for name, weight in model.named_parameters():  # a shared weight once
        size = 2 * weight.numel()
        header[name] = {
            "dtype": "BF16", "shape": list(weight.shape), "data_offsets": [end, end + size]
        }  # fmt: skip
        end += size
    written = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(written)) + written)
        file.truncate(8 + len(written) + end)
    return folder


def cached_per_token(model: torch.nn.Module) -> int:
    """Numbers that the model itself keeps of each token."""
    cache, model.config.pad_token_id = DynamicCache(), None  # else GPT-2 looks for padding
    model(input_ids=torch.zeros(1, TOKENS, dtype=torch.long, device="meta"), past_key_values=cache)
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    return numbers // TOKENS


def measured(config: PreTrainedConfig, folder: Path) -> tuple[ModelSize | None, torch.nn.Module]:
    model = hollow(config)
    return checkpoint_size(folder_of(model, config, folder)), model


@pytest.mark.parametrize("name", FAMILIES)
def test_the_plan_sees_the_model_that_transformers_builds(name: str, tmp_path: Path) -> None:
    size, model = measured(family_config(name, build_tokenizer()), tmp_path)
    assert size is not None
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert size.kv_numbers_per_token == cached_per_token(model)
    table = model.get_input_embeddings().weight
    assert (size.vocabulary, size.width) == tuple(table.shape)


def test_a_llama_of_70_billion(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80,
        num_attention_heads=64, num_key_value_heads=8, max_position_embeddings=131_072,
        tie_word_embeddings=False,
    )  # fmt: skip
    size, model = measured(config, tmp_path)
    assert size == ModelSize(
        parameters=70_553_706_496,  # Llama 3's own figure
        vocabulary=128_256,
        positions=131_072,
        kv_numbers_per_token=2 * 80 * 8 * 128,
        width=8192,
    )
    assert sum(math.prod(p.shape) for p in model.parameters()) == 70_553_706_496
    assert (size.layers, size.heads, size.inner) == (80, 64, 28_672)

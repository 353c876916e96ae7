from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from workers.errors import BrokenCheckpointError
from workers.pocket.model import create_model
from workers.specs import RolloutSpec
from workers.transformers_engine import TransformersEngine


def test_weights_that_the_folder_lacks_are_never_drawn_at_random(tmp_path: Path) -> None:
    create_model(
        tmp_path, hidden_size=16, layers=1, heads=2, kv_heads=1, intermediate_size=24,
        max_position_embeddings=32, tie_word_embeddings=True, seed=0,
    )  # fmt: skip
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    spec = RolloutSpec(
        checkpoint=str(tmp_path), engine="transformers", dtype="float32", device="cpu",
        max_prompt_tokens=8, max_response_tokens=8, max_concurrent_sequences=4,
        kv_cache_bytes=1 << 20, gpu_memory_fraction=0.5, tensor_parallel_size=1,
        prefix_caching=True, enforce_eager=True, seed=0, eos_token_id=2,
    )  # fmt: skip
    with pytest.raises(BrokenCheckpointError, match="up_proj"):
        TransformersEngine(spec)

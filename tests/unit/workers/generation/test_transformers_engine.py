from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from workers.errors import BrokenCheckpointError
from workers.generation.engine import Generated, Sample
from workers.generation.transformers_engine import TransformersEngine
from workers.models.load import load_causal_lm
from workers.pocket.model import create_model
from workers.records.generation import Sampling
from workers.records.specs import RolloutSpec


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


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_ids_beyond_the_tokenizer_are_never_drawn(tmp_path: Path, temperature: float) -> None:
    create_model(
        tmp_path, hidden_size=16, layers=1, heads=2, kv_heads=1, intermediate_size=24,
        max_position_embeddings=32, tie_word_embeddings=False, seed=0,
    )  # fmt: skip
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"][40:] *= 30.0  # almost all of the probability
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    drawn: dict[int, list[Generated]] = {}
    for vocabulary in (0, 40):
        engine = TransformersEngine(
            RolloutSpec(
                checkpoint=str(tmp_path), engine="transformers", dtype="float32", device="cpu",
                max_prompt_tokens=8, max_response_tokens=8, max_concurrent_sequences=8,
                kv_cache_bytes=1 << 20, gpu_memory_fraction=0.5, tensor_parallel_size=1,
                prefix_caching=True, enforce_eager=True, seed=0, eos_token_id=2,
                vocabulary=vocabulary,
            )
        )  # fmt: skip
        engine.add([Sample((1, 5, 6), seed) for seed in range(8)], Sampling(temperature, 6))
        drawn[vocabulary] = []
        while engine.running:
            drawn[vocabulary] += [generated for _, generated in engine.step()]
    assert any(token >= 40 for each in drawn[0] for token in each.tokens)
    assert all(token < 40 for each in drawn[40] for token in each.tokens)
    model = load_causal_lm(str(tmp_path), dtype="float64")
    for each in drawn[40]:
        whole = torch.tensor([[1, 5, 6, *each.tokens]])
        logp = (model(whole).logits[0, 2:-1, :40] / (temperature or 1.0)).log_softmax(-1)
        told = torch.tensor(each.logprobs, dtype=torch.float64)
        wanted = logp.gather(1, whole[0, 3:, None])[:, 0]
        torch.testing.assert_close(told, wanted, rtol=0, atol=1e-5)

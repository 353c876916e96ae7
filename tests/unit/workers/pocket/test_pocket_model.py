from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from workers.pocket.model import create_model
from workers.pocket.tokenizer import build_tokenizer
from workers.pocket.words import VOCABULARY
from workers.pocket.world import World


def make(path: Path, *, seed: int = 0, tied: bool = True) -> int:
    return create_model(
        path,
        hidden_size=16,
        layers=2,
        heads=4,
        kv_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
        seed=seed,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pocket")
    make(path)
    return path


def test_tokenizer_loads_as_an_ordinary_one(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.get_vocab() == {word: i for i, word in enumerate(VOCABULARY)}
    world = World(0)
    for i in range(200):
        text = world.web_document("train", i)
        ids = tokenizer.encode(text)
        assert ids[0] == 1
        assert len(ids) == 1 + len(text.split()), "nothing but the beginning token is added"
        assert tokenizer.decode([*ids, 2, 0], skip_special_tokens=True) == text


def test_unknown_words_have_a_token_of_their_own() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.encode("fox zebra") == [1, VOCABULARY.index("fox"), 3]


@pytest.mark.parametrize("tied", [True, False])
def test_model_loads_with_the_stated_size(tmp_path: Path, tied: bool) -> None:
    count = make(tmp_path, tied=tied)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    # Per layer: q and o 16 x 16, k and v 16 x 8, three 16 x 24 matrices, two norms of 16.
    layers = 2 * (2 * 256 + 2 * 128 + 3 * 384 + 2 * 16)
    embeddings = (1 if tied else 2) * 16 * len(VOCABULARY)
    assert count == layers + embeddings + 16 == model.num_parameters()
    assert model.generation_config.eos_token_id == 2
    assert model.generation_config.pad_token_id == 0
    logits = model(torch.tensor([[1, 5, 6]])).logits
    assert logits.shape == (1, 3, len(VOCABULARY))
    assert logits.dtype == torch.float32


def test_weights_follow_the_seed_and_leave_the_caller_alone(tmp_path: Path, folder: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    make(tmp_path / "same")
    assert torch.equal(torch.rand(1), expected)
    make(tmp_path / "other", seed=1)
    weights = (folder / "model.safetensors").read_bytes()
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != weights

"""config.json of every family, against numbers written down by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from family_models import POSITIONS, build_family
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

from orchestrator.planning.model_sizes import ModelSize, checkpoint_size
from workers.errors import BrokenCheckpointError
from workers.model_folders import shape
from workers.model_folders.shape import read_shape
from workers.pocket.words import VOCABULARY

# layers, key/value heads, head size, positions, tied
SHAPES = {
    "llama": (2, 2, 32, POSITIONS, False),
    "qwen2": (2, 2, 32, POSITIONS, True),
    "mixtral": (2, 2, 32, POSITIONS, False),
    "gpt2": (2, 2, 32, POSITIONS, True),
    "gpt_neox": (2, 2, 64, POSITIONS, False),
    "opt": (2, 2, 32, POSITIONS, True),
    "falcon": (2, 1, 32, POSITIONS, True),  # all queries share one key
    "bloom": (2, 2, 32, None, True),  # ALiBi: no limit
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_of_a_family(name: str, tmp_path: Path) -> None:
    shape = read_shape(build_family(name, tmp_path))
    assert (
        shape.layers, shape.kv_heads, shape.head_size, shape.positions, shape.tied
    ) == SHAPES[name]  # fmt: skip
    assert shape.vocabulary == len(VOCABULARY)


def test_the_size_of_gpt2(tmp_path: Path) -> None:
    words, width = len(VOCABULARY), 64
    layer = 12 * width**2 + 13 * width  # Radford et al. 2019: 4 + 8 matrices, their biases, norms
    assert checkpoint_size(build_family("gpt2", tmp_path)) == ModelSize(
        parameters=(words + POSITIONS) * width + 2 * layer + 2 * width,
        vocabulary=words,
        positions=POSITIONS,
        kv_numbers_per_token=2 * 2 * 64,
        width=width,
    )


def test_a_language_model_inside_a_larger_one(tmp_path: Path) -> None:
    text = {"model_type": "gemma3_text", "num_hidden_layers": 3, "hidden_size": 64, "head_dim": 48}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 77}
    config = {"model_type": "gemma3", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = read_shape(tmp_path)
    assert (shape.layers, shape.kv_heads, shape.head_size, shape.vocabulary) == (3, 1, 48, 77)


def test_the_key_tells_architectures_apart_and_nothing_else(tmp_path: Path) -> None:
    one = read_shape(build_family("llama", tmp_path / "one"))
    other = read_shape(build_family("llama", tmp_path / "other", seed=1, use_cache=False))
    deeper = read_shape(build_family("llama", tmp_path / "deeper", num_hidden_layers=3))
    windowed = read_shape(build_family("mistral", tmp_path / "windowed"))
    full = read_shape(build_family("mistral", tmp_path / "full", sliding_window=None))
    assert one.key == other.key
    assert len({s.key for s in (one, deeper, windowed, full)}) == 4


@pytest.mark.parametrize(
    ("name", "extra", "plain"),
    [("llama", {}, True), ("gpt2", {}, True), ("gemma2", {}, False),
     ("gemma2", {"final_logit_softcapping": None}, True)],
)  # fmt: skip
def test_who_changes_what_the_output_layer_says(
    tmp_path: Path, name: str, extra: dict[str, object], plain: bool
) -> None:
    assert read_shape(build_family(name, tmp_path, **extra)).plain_logits is plain


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "nonsense"}', "{}"])
def test_a_broken_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BrokenCheckpointError, match=r"config\.json"):
        read_shape(tmp_path)


@pytest.mark.parametrize("family", sorted(shape._EXPLICIT))
def test_a_shape_that_is_spelled_out_is_read_without_transformers_and_the_same(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG_MAPPING[family](
        vocab_size=96, hidden_size=64, intermediate_size=160, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=80,
        tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shape, "load_config", lambda _: pytest.fail("it is not needed"))
        quick = read_shape(tmp_path)
    monkeypatch.setattr(shape, "_says_all", lambda _: False)
    assert replace(quick, content="") == replace(read_shape(tmp_path), content="")
    assert family in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES


@pytest.mark.parametrize(
    "change",
    [
        {"head_dim": None}, {"vocab_size": "96"}, {"hidden_size": True}, {"model_type": "gemma"},
        {"tie_word_embeddings": 1}, {"auto_map": {"AutoModel": "x.Y"}}, {"intermediate_size": 1.5},
    ],
)  # fmt: skip
def test_a_shape_that_is_not_is_read_by_transformers(change: dict) -> None:
    numbers = dict.fromkeys(shape._NUMBERS, 8)
    whole = {"model_type": "llama", "tie_word_embeddings": False, **numbers}
    assert shape._says_all(whole)
    assert not shape._says_all(whole | change)

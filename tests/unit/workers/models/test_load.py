import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from family_models import FAMILIES, build_family
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTokenClassification, OPTConfig, OPTForCausalLM

from workers.errors import BrokenCheckpointError, ConfigError, MissingCheckpointError
from workers.models.forward import ModelPasses
from workers.models.load import (
    keep_checkpointing,
    keeps_documents_apart,
    load_causal_lm,
    load_scalar,
    scalar_head,
)
from workers.pocket.model import create_model
from workers.records.arrays import Ragged
from workers.records.training import TokenBatch
from workers.roles.scoring import text_loss


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "base"
    create_model(
        path, hidden_size=16, layers=1, heads=2, kv_heads=1, intermediate_size=24,
        max_position_embeddings=32, tie_word_embeddings=True, seed=0,
    )  # fmt: skip
    return path


def test_a_random_head_has_the_promised_spread(base: Path) -> None:
    model = load_scalar(str(base), dtype="float32", head="random", seed=1)
    again = load_scalar(str(base), dtype="float32", head="random", seed=1)
    assert torch.equal(model.score.weight, again.score.weight)
    assert float(model.score.weight.detach().std()) == pytest.approx(17**-0.5, rel=0.5)
    assert model.score.bias.tolist() == [0.0]
    body = load_causal_lm(str(base), dtype="float32").model
    for name, weight in model.model.named_parameters():
        assert torch.equal(weight, body.get_parameter(name))


def test_a_scalar_model_is_an_ordinary_folder(base: Path, tmp_path: Path) -> None:
    model = load_scalar(str(base), dtype="float32", head="random")
    with torch.no_grad():
        model.score.bias.fill_(-1.5)
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[1, 5, 6]])
    wanted = model(input_ids=ids).logits
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(plain(input_ids=ids).logits, wanted)
    kept = load_scalar(str(tmp_path), dtype="float32", head="keep")
    assert torch.equal(kept(input_ids=ids).logits, wanted)
    zero = load_scalar(str(tmp_path), dtype="float32", head="zero")
    assert not zero(input_ids=ids).logits.any()


def test_a_head_without_a_bias_gets_none_at_random(base: Path, tmp_path: Path) -> None:
    load_scalar(str(base), dtype="float32", head="random").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["score.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load_scalar(str(tmp_path), dtype="float32").score.bias.tolist() == [0.0]


def test_a_language_model_has_no_head_to_keep(base: Path) -> None:
    with pytest.raises(BrokenCheckpointError, match="no scalar head"):
        load_scalar(str(base), dtype="float32", head="keep")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingCheckpointError):
        load_causal_lm(str(tmp_path / "nowhere"), dtype="float32")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_never_turns_dropout_on(checkpointing: bool) -> None:
    # OPT's layers drop out by the flag that says whether activations are recomputed.
    config = OPTConfig(
        vocab_size=20, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, word_embed_proj_dim=16, dropout=0.5,
    )  # fmt: skip
    model = OPTForCausalLM(config).eval()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    keep_checkpointing(model)
    ids = torch.tensor([[2, 5, 6, 7]])
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_checkpointing_goes_on_in_evaluation_mode(base: Path) -> None:
    model = load_causal_lm(str(base), dtype="float32")
    layer = model.model.layers[0]
    keep_checkpointing(model)
    assert not layer.training
    model.gradient_checkpointing_enable({"use_reentrant": False})
    keep_checkpointing(model)
    assert layer.training
    assert not layer.mlp.training


def _without_a_layer(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def _truncated(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _of_another_shape(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))


def _without_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "damage", [_without_a_layer, _truncated, _of_another_shape, _without_weights]
)
def test_a_broken_folder_is_refused(base: Path, tmp_path: Path, damage) -> None:
    path = tmp_path / "broken"
    shutil.copytree(base, path)
    damage(path)
    with pytest.raises(BrokenCheckpointError):
        load_causal_lm(str(path), dtype="float32")
    with pytest.raises(BrokenCheckpointError):
        load_scalar(str(path), dtype="float32", head="random")


ALONE = ("bloom", "falcon", "opt")  # their positions do not tell documents apart


@pytest.mark.parametrize("name", FAMILIES)
def test_documents_that_share_a_row_do_not_see_each_other(name: str, tmp_path: Path) -> None:
    folder = str(build_family(name, tmp_path))
    model = load_causal_lm(folder, dtype="float32", attention=FAMILIES[name].attention)
    assert keeps_documents_apart(model) == (name not in ALONE)
    documents = [[5, 9, 11, 7, 6], [8, 4, 30, 31]]
    shared = TokenBatch(
        Ragged.from_rows([[*documents[0], *documents[1]]], np.int32),
        Ragged.from_rows([[False, True, True, True, True, False, True, True, True]], np.bool_),
        Ragged.from_rows([[0, 1, 2, 3, 4, 0, 1, 2, 3]], np.int32),
    )
    apart = TokenBatch(
        Ragged.from_rows(documents, np.int32),
        Ragged.from_rows([[True] * 5, [True] * 4], np.bool_),
    )
    assert apart.target_count == shared.target_count == 7
    wanted = sum(
        -float(model(input_ids=torch.tensor([d])).logits[0].log_softmax(-1)[t - 1, d[t]])
        for d in documents
        for t in range(1, len(d))
    )
    batch = apart if name in ALONE else shared
    loss = text_loss(ModelPasses(model), batch, "cpu")
    assert loss.nll == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name].head])
def test_every_family_carries_a_scalar_head(name: str, tmp_path: Path) -> None:
    build_family(name, tmp_path / "base")
    how = {"dtype": "float32", "attention": FAMILIES[name].attention}
    model = load_scalar(str(tmp_path / "base"), head="random", **how)
    head, linear = scalar_head(model)
    assert head == FAMILIES[name].head
    assert linear.bias.tolist() == [0.0]
    model.save_pretrained(tmp_path / "scalar")
    ids = torch.tensor([[1, 5, 6]])
    wanted = model(input_ids=ids).logits
    plain, info = AutoModelForTokenClassification.from_pretrained(
        tmp_path / "scalar", output_loading_info=True, attn_implementation=how["attention"]
    )
    assert not info["missing_keys"]
    torch.testing.assert_close(plain.eval()(input_ids=ids).logits, wanted, rtol=0, atol=1e-6)
    kept = load_scalar(str(tmp_path / "scalar"), head="keep", **how)
    torch.testing.assert_close(kept(input_ids=ids).logits, wanted, rtol=0, atol=1e-6)
    with pytest.raises(BrokenCheckpointError, match="no scalar head"):
        load_scalar(str(tmp_path / "base"), head="keep", **how)


def test_a_family_without_such_a_class_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'opt'"):
        load_scalar(str(build_family("opt", tmp_path)), dtype="float32", head="zero")


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2", "flex_attention"])
def test_attention_that_a_family_lacks_is_named(tmp_path: Path, attention: str) -> None:
    folder = str(build_family("bloom", tmp_path))
    with pytest.raises(ConfigError, match=rf"'bloom' models do not load with {attention}") as error:
        load_causal_lm(folder, dtype="float32", attention=attention)
    assert "model.attention=eager" in error.value.fix

"""Weights leave a model as its folder holds them, and come back to the same places."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from family_models import FAMILIES, build_family
from safetensors.torch import load_file, save_file

from workers.errors import WeightSyncError
from workers.model_folders.saved_form import CheckpointFormReader, checkpoint_form, checkpoint_metas
from workers.model_folders.weight_files import OUTPUT_LAYERS, SafetensorsFolder
from workers.models.load import load_causal_lm
from workers.records.weights import TensorMeta


def loaded(name: str, folder: Path, seed: int = 0):
    build_family(name, folder, seed=seed)
    return load_causal_lm(str(folder), dtype="float32", attention=FAMILIES[name].attention)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_travels_is_what_the_folder_holds(name: str, tmp_path: Path) -> None:
    model = loaded(name, tmp_path)
    named = [(n, p.detach()) for n, p in model.named_parameters()]
    sent = [pair for layer in checkpoint_form(model, named) for pair in layer]
    held = load_file(tmp_path / "model.safetensors")
    assert {n for n, _ in sent} == held.keys()
    assert all(torch.equal(tensor, held[n]) for n, tensor in sent)
    own = [TensorMeta(n, "float32", tuple(p.shape)) for n, p in named]
    announced = [(m.name, m.dtype, m.shape) for m in checkpoint_metas(model, own)]
    assert announced == [(n, "float32", tuple(tensor.shape)) for n, tensor in sent]


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_neox", "gpt2"])
def test_a_live_model_takes_in_another_ones_folder(name: str, tmp_path: Path) -> None:
    model, other = loaded(name, tmp_path / "a"), loaded(name, tmp_path / "b", seed=1)
    reader = CheckpointFormReader(model)
    for bucket in SafetensorsFolder(str(tmp_path / "b")).buckets():
        reader.read(bucket)
    for n, parameter in other.named_parameters():
        assert torch.equal(model.get_parameter(n), parameter), n
    with pytest.raises(WeightSyncError, match=r"no weight model\.nothing"):
        reader.read([("model.nothing", torch.zeros(1))])


def test_a_folder_of_the_body_alone_is_the_same_model(tmp_path: Path) -> None:
    """GPT-2 as it was first published: no prefix, the mask beside the weights, old keys."""
    model = loaded("gpt2", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    wanted = SafetensorsFolder(str(tmp_path))
    bare = {n.removeprefix("transformer."): t for n, t in weights.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    folder = SafetensorsFolder(str(tmp_path))
    assert folder.shapes == wanted.shapes
    assert folder.tied
    again = load_causal_lm(str(tmp_path), dtype="float32")
    named = [(n, p.detach()) for n, p in again.named_parameters()]
    own = [TensorMeta(n, "float32", tuple(p.shape)) for n, p in named]
    assert {m.name.removeprefix("transformer.") for m in checkpoint_metas(again, own)} == (
        folder.shapes.keys()
    )
    ids = torch.tensor([[1, 5, 9]])
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_tied_folders_hold_no_output_layer(name: str, tmp_path: Path) -> None:
    folder = SafetensorsFolder(str(build_family(name, tmp_path)))
    assert folder.tied == FAMILIES[name].tied
    assert bool(OUTPUT_LAYERS & folder.shapes.keys()) == (not folder.tied)

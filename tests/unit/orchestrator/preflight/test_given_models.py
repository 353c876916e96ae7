"""What is given as a checkpoint is what its name promises; what it is instead is said."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from family_models import build_family
from safetensors.torch import load_file, save_file

from orchestrator.checkpoints import model_folder
from orchestrator.config.schema import Config
from orchestrator.planning.model_sizes import checkpoint_size
from orchestrator.preflight.given_models import check_models
from workers.errors import (
    BrokenCheckpointError,
    MissingCheckpointError,
    RehearsalError,
    TokenizerMismatchError,
)
from workers.models.load import load_scalar
from workers.pocket.model import create_model
from workers.pocket.tokenizer import build_tokenizer

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_model(
        tmp_path / "m", hidden_size=16, layers=1, heads=2, kv_heads=1, intermediate_size=24,
        max_position_embeddings=32, tie_word_embeddings=False, seed=0,
    )  # fmt: skip
    return tmp_path / "m"


def look(folder: Path, name: str = "sft") -> None:
    checked = model_folder.require(str(folder), name)
    check_models(Config(), {f"model.checkpoints.{name}": str(checked)})


def shard(folder: Path) -> None:
    """Divide the weights over two files with an index."""
    weights = load_file(folder / WHOLE)
    files = {n: f"model-{1 + ('embed' in n)}.safetensors" for n in weights}
    for file in set(files.values()):
        save_file({n: w for n, w in weights.items() if files[n] == file}, folder / file,
                  metadata={"format": "pt"})  # fmt: skip
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / WHOLE).unlink()


def change(folder: Path, file: str = "config.json", **values: object) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | values))


def test_a_second_copy_of_the_weights_is_neither_read_nor_counted(folder: Path) -> None:
    single = checkpoint_size(folder)
    shard(folder)
    save_file({"tok_embeddings.weight": torch.zeros(99, 99)}, folder / "consolidated.safetensors")
    look(folder)
    assert checkpoint_size(folder) == single


def test_links_are_followed_in_the_cache_of_hugging_face_alone(
    folder: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    look(snapshot)
    (tmp_path / "elsewhere").mkdir()
    for link in snapshot.iterdir():
        (tmp_path / "elsewhere" / link.name).symlink_to(link.resolve())
    with pytest.raises(BrokenCheckpointError, match="is a link that leaves the folder"):
        look(tmp_path / "elsewhere")


def _replace(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: void((folder / name).write_bytes(content))


def void(_: object) -> None:
    return None


def _deep(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def _pipe(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


def _missing_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-1.safetensors").unlink()


def _leaving(folder: Path) -> None:
    shard(folder)
    content = json.loads((folder / INDEX).read_text())["weight_map"]
    (folder / INDEX).write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(content, "../m/x.safetensors")})
    )


def _adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / WHOLE).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')


def _pickle(folder: Path) -> None:
    (folder / WHOLE).rename(folder / "pytorch_model.bin")


def _tensors(**changes: torch.Tensor | None) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / WHOLE) | {k: v for k, v in changes.items() if v is not None}
        for name in [name for name, value in changes.items() if value is None]:
            del weights[name]
        save_file(weights, folder / WHOLE, metadata={"format": "pt"})

    return damage


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_replace(WHOLE, LFS), "model.safetensors is a Git LFS pointer"),
        (_replace(WHOLE, b"\n<!DOCTYPE html><html>"), "model.safetensors is an HTML page"),
        (_replace("config.json", LFS), "config.json is a Git LFS pointer"),
        (_replace("config.json", b'{"hidden_size": NaN}'), "NaN is no value of a setting"),
        (_deep, "config.json does not parse: maximum recursion depth"),
        (_pipe, "tokenizer.json is no ordinary file"),
        (_missing_shard, "1 of 2 files that .* names are missing: model-1.safetensors"),
        (_leaving, "names '../m/x.safetensors', which is no file name"),
        (_adapter, "an adapter alone, not a model; its base is org/base"),
        (_pickle, "only pickled weights: pytorch_model.bin"),
        (lambda f: change(f, quantization_config={"quant_method": "gptq"}), "weights .gptq."),
        (lambda f: change(f, model_type="own", auto_map={"AutoConfig": "a.B"}),
         "needs its own Python code, which is never run"),
        (lambda f: change(f, num_hidden_layers=10**6), "for the layers of the model"),
        (lambda f: change(f, num_hidden_layers=5000), "5,000 layers, and the weights"),
        (lambda f: change(f, rms_norm_eps=0.0), "rms_norm_eps=0.0"),
        (_tensors(**{"model.norm.weight": None}), "1 weights are missing .*: model.norm.weight"),
        (_tensors(**{"lm_head.weight": torch.zeros(3, 16)}), "lm_head.weight is \\(3, 16\\), not"),
        (_tensors(**{"lora_A.weight": torch.zeros(3)}), "would be left out: lora_A.weight"),
        (_tensors(**{"model.norm.weight": torch.ones(16, dtype=torch.int8)}), "stored as I8"),
        (_replace("tokenizer.json", b'{"model": {}}'), "no readable tokenizer"),
        (lambda f: change(f, "tokenizer.json", added_tokens=[{"id": 10**9}]), "id 1,000,000,000"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_with_its_folder(
    folder: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(folder)
    with pytest.raises(BrokenCheckpointError, match=says) as caught:
        look(folder)
    assert str(folder) in caught.value.where
    assert caught.value.fix


def test_a_reward_model_is_no_policy_and_the_reverse(folder: Path, tmp_path: Path) -> None:
    load_scalar(str(folder), dtype="float32", head="random").save_pretrained(tmp_path / "rm")
    build_tokenizer().save_pretrained(tmp_path / "rm")
    look(tmp_path / "rm", "reward_model")
    look(tmp_path / "rm", "critic")
    look(folder, "critic")
    with pytest.raises(BrokenCheckpointError, match="a reward model or classifier") as caught:
        look(tmp_path / "rm")
    assert caught.value.where.startswith("model.checkpoints.sft: ")
    with pytest.raises(BrokenCheckpointError, match="has no scalar head"):
        look(folder, "reward_model")


def test_a_tied_reward_model_is_no_policy(tmp_path: Path) -> None:
    base = build_family("gpt2", tmp_path / "base")
    load_scalar(str(base), dtype="float32", head="random").save_pretrained(tmp_path / "rm")
    build_tokenizer().save_pretrained(tmp_path / "rm")
    with pytest.raises(BrokenCheckpointError, match="it has the head classifier"):
        look(tmp_path / "rm")


def test_a_tokenizer_with_more_words_than_the_embedding_is_refused(folder: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["unheard"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(TokenizerMismatchError, match=r"1 from 100 \('unheard'\)") as caught:
        look(folder)
    assert "resize_token_embeddings" in caught.value.fix


@pytest.mark.parametrize("path", ["", "x" * 5000, "a\0b", "/dev/null", "\ud800"])
def test_what_is_no_folder_at_all_is_refused(path: str) -> None:
    with pytest.raises(RehearsalError, match="the sft checkpoint") as caught:
        model_folder.require(path, "sft")
    assert "model.checkpoints.sft" in caught.value.fix


def test_a_file_is_not_taken_for_a_folder(folder: Path) -> None:
    with pytest.raises(MissingCheckpointError, match="is a file; a folder is wanted"):
        model_folder.require(str(folder / WHOLE), "sft")

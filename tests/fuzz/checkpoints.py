"""Hostile checkpoint folders: whole but for one thing, read as `run.plan_only=true` reads them."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fuzz.exports import small_model
from fuzz.frame import Case
from orchestrator.checkpoints import model_folder
from orchestrator.config.schema import Config
from orchestrator.preflight.given_models import check_models

Damage = Callable[[Path, random.Random], tuple[str, str]]  # folder -> its name, why it may pass

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SETTINGS = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
_VALUES = (
    None, -1, 0, 1, 0.5, 10**9, 10**30, 1e308, float("nan"), float("inf"), "", "x", "../x",
    "\ud800", [], [1], ["a"], {}, {"a": 1}, True, False,
)  # fmt: skip
_TEXTS = (
    b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff\xfe\x00", b"\x00" * 64, b"[" * 100_000,
    b'{"a":' * 5_000, b"<!DOCTYPE html><html>sign in</html>", b"\xef\xbb\xbf{}", b"{} {}",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", b'{"model_type": NaN}',
)  # fmt: skip
_HARMLESS = {
    "config.json": "a setting that changes neither the shape nor the loading of the model",
    "tokenizer.json": "a tokenizer of other words, which reads, writes and stays in the embedding",
    "tokenizer_config.json": "a tokenizer of other settings, which still reads and writes",
    "generation_config.json": "how to sample by default; a run samples by its own settings",
}


_PATHS = ("", ".", "/", "/dev/null", "/dev/zero", "x" * 5000, "\0", "a\0b", "~", "\ud800", "no/one")


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    """Yield `count` folders, each with one thing wrong."""
    rng = random.Random(seed)
    whole, shards = folder / "whole", folder / "shards"
    small_model(whole)
    shutil.copytree(whole, shards)
    _shard(shards)
    for path in _PATHS[: count // 10]:
        yield Case(f"path {path[:20]!r}", _look(path, "sft"))
    for number in range(count - len(_PATHS[: count // 10])):
        damage = _DAMAGES[number % len(_DAMAGES)]
        place = folder / f"case-{number}"
        shutil.copytree(shards if damage is _index else whole, place)
        name, reason = damage(place, random.Random(rng.random()))
        yield Case(f"{damage.__name__.strip('_')}: {name}", _look(str(place), "sft"), reason)
        shutil.rmtree(place, ignore_errors=True)


def _look(path: str, key: str) -> Callable[[], object]:
    def look() -> None:
        checked = model_folder.require(path, key)
        check_models(Config(), {f"model.checkpoints.{key}": str(checked)})

    return look


def _shard(path: Path) -> None:
    weights = load_file(path / _WHOLE)
    names = sorted(weights)
    files = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: weights[name] for name in names if files[name] == file}
        save_file(part, path / file, metadata={"format": "pt"})
    (path / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (path / _WHOLE).unlink()


def _text(folder: Path, rng: random.Random) -> tuple[str, str]:
    """A file of settings that is no JSON object, or another one."""
    name, text = rng.choice(_SETTINGS), rng.choice(_TEXTS)
    (folder / name).write_bytes(text)
    optional = _HARMLESS[name] if name != "config.json" else ""
    return f"{name} is {text[:12]!r}", optional


def _value(folder: Path, rng: random.Random) -> tuple[str, str]:
    """One value in a file of settings is of another kind."""
    name, value = rng.choice(_SETTINGS), rng.choice(_VALUES)
    content = json.loads((folder / name).read_text())
    at, inner = rng.choice(list(_places(content)))
    inner[at] = value
    (folder / name).write_text(json.dumps(content))
    return f"{name}: {at}={value!r}", _HARMLESS[name]


def _absent(folder: Path, rng: random.Random) -> tuple[str, str]:
    """One value in a file of settings is not there."""
    name = rng.choice(_SETTINGS)
    content = json.loads((folder / name).read_text())
    at, inner = rng.choice(list(_places(content)))
    del inner[at]
    (folder / name).write_text(json.dumps(content))
    return f"{name}: no {at}", _HARMLESS[name]


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every key or index in a JSON value, with what holds it; long lists by their start."""
    keys = content if isinstance(content, dict) else range(min(3, len(content)))
    for key in list(keys):
        yield key, content
        if isinstance(content[key], (dict, list)):
            yield from _places(content[key])


def _entry(folder: Path, rng: random.Random) -> tuple[str, str]:
    """A file is none: missing, a folder, a pipe, a device, or a link to nowhere or elsewhere."""
    name = rng.choice((*_SETTINGS, _WHOLE))
    kind = rng.choice(("missing", "folder", "pipe", "loop", "nowhere", "zero", "outside", "long"))
    path = folder / name
    kept = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "outside":
        other = folder.with_name(f"{folder.name}-other")
        other.write_bytes(kept)
        path.symlink_to(other)
    elif kind != "missing":
        target = {"loop": name, "nowhere": "not-there", "zero": "/dev/zero", "long": "x" * 4000}
        path.symlink_to(target[kind])
    missing_is_fine = kind == "missing" and name == "generation_config.json"
    return f"{name} is {kind}", "an optional file" if missing_is_fine else ""


def _weights(folder: Path, rng: random.Random) -> tuple[str, str]:
    """The file of weights is cut, spoilt, or of another format."""
    path = folder / _WHOLE
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    deep = b'{"a":' * 5_000
    spoilt = {
        "cut": whole[: rng.randrange(len(whole))],
        "longer": whole + b"\0" * rng.randrange(1, 99),
        "header of another length": struct.pack("<Q", rng.choice((0, 2**63, 2**31, 7))) + whole[8:],
        "header spoilt": whole[:8] + rng.randbytes(rng.randrange(1, length)) + whole[300:],
        "deep header": struct.pack("<Q", len(deep)) + deep,
        "random": rng.randbytes(rng.randrange(1, 4000)),
        "html": b"<html><body>404</body></html>",
        "html, spaces first": b"\n  <!DOCTYPE html>\n<html>",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 123\n",
        "zip": b"PK\x03\x04" + rng.randbytes(200),
        "gguf": b"GGUF\x03\0\0\0" + rng.randbytes(200),
        "json": b'{"error": "Access to model is restricted"}',
    }
    kind = rng.choice(sorted(spoilt))
    path.write_bytes(spoilt[kind])
    return kind, ""


def _tensors(folder: Path, rng: random.Random) -> tuple[str, str]:
    """The weights are whole, and not those of the model."""
    weights = load_file(folder / _WHOLE)
    name = rng.choice(sorted(weights))
    kind = rng.choice(("missing", "renamed", "wider", "scalar", "integer", "head", "extra", "none"))
    tensor = weights[name]
    if kind in ("missing", "renamed"):
        del weights[name]
    changed = {
        "renamed": {f"base_model.{name}": tensor},
        "wider": {name: torch.zeros(*tensor.shape, 2)},
        "scalar": {name: torch.zeros(())},
        "integer": {name: tensor.to(torch.int8)},
        "head": {"score.weight": torch.zeros(1, 16)},
        "extra": {f"{name}.lora_A": torch.zeros(2)},
    }
    weights |= changed.get(kind, {})
    save_file({} if kind == "none" else weights, folder / _WHOLE, metadata={"format": "pt"})
    return f"{kind} {name}", ""


def _index(folder: Path, rng: random.Random) -> tuple[str, str]:
    """The index of shards lies."""
    path = folder / _INDEX
    content = json.loads(path.read_text())
    names: dict[str, Any] = content["weight_map"]
    one = rng.choice(sorted(names))
    value = rng.choice(
        ("../x.safetensors", "/etc/passwd", "gone.safetensors", "", ".", "..", "a/b", 7, None, [],
         "config.json", "x" * 4000, "\0", "model-00001-of-00002.safetensors ")
    )  # fmt: skip
    kind = rng.choice(
        ("value", "value", "extra", "less", "map", "both", "shard", "swapped", "link")
    )
    if kind == "value":
        names[one] = value
    elif kind == "extra":
        names["model.not.there"] = names[one]
    elif kind == "less":
        del names[one]
    elif kind == "map":
        content["weight_map"] = rng.choice(_VALUES)
    elif kind == "both":
        save_file({"a": torch.zeros(2)}, folder / _WHOLE)
    elif kind == "shard":
        (folder / names[one]).unlink()
    elif kind == "link":
        shard = folder / names[one]
        shard.rename(folder.with_name(f"{folder.name}-{shard.name}"))
        shard.symlink_to(folder.with_name(f"{folder.name}-{shard.name}"))
    else:
        first, second = sorted(set(names.values()))
        names[one] = second if names[one] == first else first
    path.write_text(json.dumps(content))
    reason = "loaders read the files of an index whole" if kind == "less" else ""
    return f"{kind} {value!r}"[:80] if kind == "value" else kind, reason


def _kind(folder: Path, rng: random.Random) -> tuple[str, str]:
    """A folder of another kind than a language model with plain weights."""
    config = json.loads((folder / "config.json").read_text())
    kind = rng.choice(
        ("adapter", "code", "gptq", "awq", "t5", "bert", "family", "pickle", "mistral", "deep",
         "second file")
    )  # fmt: skip
    changes: dict[str, dict[str, Any]] = {
        "code": {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig"}},
        "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "awq": {"quantization_config": {"quant_method": "awq", "bits": 4}},
        "t5": {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
        "bert": {"model_type": "bert", "architectures": ["BertModel"]},
        "family": {"model_type": rng.choice(("gpt2", "nothing", "", "qwen3", "llava"))},
        "deep": {"num_hidden_layers": rng.choice((2, 5_000, 10**7))},
    }
    config |= changes.get(kind, {})
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / _WHOLE
    if kind == "adapter":
        (folder / "config.json").unlink()
        weights.rename(folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')
    elif kind == "pickle":
        torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
        weights.unlink()
    elif kind == "mistral":
        weights.rename(folder / "consolidated.safetensors")
    elif kind == "second file":
        shutil.copy(weights, folder / "consolidated.safetensors")
    return kind, ""


_DAMAGES: tuple[Damage, ...] = (_text, _value, _absent, _entry, _weights, _tensors, _index, _kind)

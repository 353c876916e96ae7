"""Weights of a Hugging Face folder, with all headers checked before any tensor is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from workers.errors import MissingCheckpointError
from workers.model_folders.files import Stored, broken, read_headers
from workers.model_folders.shape import read_shape
from workers.process.library_errors import reading
from workers.records.weights import TensorMeta

if TYPE_CHECKING:
    from workers.weights.packing import NamedTensors

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Names of the output layer in the families; with tied weights it is the embedding.
OUTPUT_LAYERS = frozenset({"lm_head.weight", "embed_out.weight"})
# Name prefixes of a model's body, without its language-modelling head. Published folders of the
# body alone (GPT-2) omit the prefix, and every loader adds it.
_BODIES = ("transformer.", "model.", "gpt_neox.")
# Constants that older versions of transformers stored with the weights; no model reads them.
_CONSTANTS = re.compile(r"\.(attn|attention)\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
_FIX = "save the model again with save_pretrained(..., safe_serialization=True)"


def bare_name(name: str) -> str:
    """Name of a weight within its model's body, equal for folders with and without the prefix."""
    body = next((body for body in _BODIES if name.startswith(body)), "")
    return name.removeprefix(body)


def is_constant(name: str) -> bool:
    """Whether a tensor is a constant that no model reads."""
    return bool(_CONSTANTS.search(name))


class SafetensorsFolder:
    """The weights and the configuration of one checkpoint folder.

    Args:
        path: Folder with config.json and model.safetensors, or an index and its shards.

    Raises:
        MissingCheckpointError: No such folder.
        BrokenCheckpointError: A file is missing, truncated, or not of the expected format.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise MissingCheckpointError(
                "no such checkpoint folder", where=path, fix="check the path, or run its stage"
            )
        self.shape = read_shape(self.path)
        self._metas = {f: _floats(f, tensors) for f, tensors in read_headers(self.path).items()}
        self.metas = tuple(m for metas in self._metas.values() for m in metas)

    @property
    def tied(self) -> bool:
        """True when the output layer shares its weights with the embedding."""
        return self.shape.tied

    @property
    def vocabulary(self) -> int:
        """Number of rows of the embedding."""
        return self.shape.vocabulary

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each weight that a weight sync must send; excludes a tied output layer.

        Keys are names within the body of the model (`bare_name`).
        """
        skip = OUTPUT_LAYERS if self.tied else frozenset()
        return {bare_name(m.name): m.shape for m in self.metas if m.name not in skip}

    def buckets(self) -> Iterator[NamedTensors]:
        """Yield the tensors in the order of `metas`, one file at a time, one tensor per bucket."""
        for file, metas in self._metas.items():
            with reading(self.path, f"cannot read {file.name}", _FIX):
                weights = safe_open(file, framework="pt")
            with weights:
                for meta in metas:
                    with reading(self.path, f"cannot read {meta.name} in {file.name}", _FIX):
                        tensor = weights.get_tensor(meta.name)
                    yield [(meta.name, tensor)]


def _floats(file: Path, tensors: list[Stored]) -> tuple[TensorMeta, ...]:
    """The weights of a file without constants; raises for dtypes other than plain floats."""
    kept = [tensor for tensor in tensors if not is_constant(tensor.name)]
    for tensor in kept:
        if tensor.dtype not in _DTYPES:
            raise broken(
                file.parent,
                f"{tensor.name} is stored as {tensor.dtype}, not as plain floats",
                _FIX,
            )
    return tuple(TensorMeta(t.name, _DTYPES[t.dtype], t.shape) for t in kept)

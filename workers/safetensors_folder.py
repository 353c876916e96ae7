"""Weights of a Hugging Face folder: what it holds, checked before any tensor is read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from workers.errors import BrokenCheckpointError, MissingCheckpointError
from workers.messages import TensorMeta
from workers.model_shape import read_shape

if TYPE_CHECKING:
    from workers.weight_packing import NamedTensors

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# What the families call the output layer; with tied weights it is the embedding.
OUTPUT_LAYERS = frozenset({"lm_head.weight", "embed_out.weight"})
# The body of a model under its language-modelling head; published folders of the body alone (GPT-2)
# leave it out, and every loader adds it.
_BODIES = ("transformer.", "model.", "gpt_neox.")
# Constants that older versions of transformers wrote beside the weights; no model reads them.
_CONSTANTS = re.compile(r"\.(attn|attention)\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
_MEND = "save the model again with save_pretrained(..., safe_serialization=True)"


def bare_name(name: str) -> str:
    """Name of a weight within the body of its model: equal however the folder was written."""
    body = next((body for body in _BODIES if name.startswith(body)), "")
    return name.removeprefix(body)


class SafetensorsFolder:
    """The weights and the configuration of one checkpoint folder.

    Args:
        path: Folder with config.json and model.safetensors, or an index and its shards.

    Raises:
        MissingCheckpointError: No such folder.
        BrokenCheckpointError: A file is missing, cut short, or not what it claims to be.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise MissingCheckpointError(
                "no such checkpoint folder", where=path, mend="check the path, or run its stage"
            )
        self.shape = read_shape(self.path)
        self._files = self._shards()
        self.metas = tuple(m for file in self._files for m in self._header(file))

    @property
    def tied(self) -> bool:
        """True when the output layer shares its weights with the embedding."""
        return self.shape.tied

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the embedding knows."""
        return self.shape.vocabulary

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each weight that an update must bring; a tied output layer is not one.

        Keys are names within the body of the model (`bare_name`).
        """
        skip = OUTPUT_LAYERS if self.tied else frozenset()
        return {bare_name(m.name): m.shape for m in self.metas if m.name not in skip}

    def buckets(self) -> Iterator[NamedTensors]:
        """Yield the tensors in the order of `metas`, one file at a time, one tensor a bucket."""
        for file in self._files:
            try:
                with safe_open(file, framework="pt") as weights:
                    for meta in self._header(file):
                        yield [(meta.name, weights.get_tensor(meta.name))]
            except (SafetensorError, OSError) as error:
                raise self._broken(file.name, str(error)) from error

    def _shards(self) -> list[Path]:
        index = self.path / "model.safetensors.index.json"
        if index.exists():
            names = self._json(index.name).get("weight_map")
            if not isinstance(names, dict) or not names:
                raise self._broken(index.name, "no weight_map")
            return [self.path / n for n in sorted(set(names.values()))]
        return [self.path / "model.safetensors"]

    def _header(self, file: Path) -> list[TensorMeta]:
        try:
            with safe_open(file, framework="np") as weights:
                slices = {
                    name: weights.get_slice(name)
                    for name in weights.offset_keys()
                    if not _CONSTANTS.search(name)
                }
                return [
                    TensorMeta(name, _DTYPES[s.get_dtype()], tuple(s.get_shape()))
                    for name, s in slices.items()
                ]
        except (SafetensorError, OSError) as error:
            raise self._broken(file.name, str(error)) from error
        except KeyError as error:
            raise self._broken(file.name, f"weights in unsupported format {error}") from error

    def _json(self, name: str) -> dict[str, object]:
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._broken(name, str(error)) from error
        if not isinstance(content, dict):
            raise self._broken(name, "not a JSON object")
        return content

    def _broken(self, name: str, why: str) -> BrokenCheckpointError:
        return BrokenCheckpointError(f"cannot read {name}: {why}", where=str(self.path), mend=_MEND)

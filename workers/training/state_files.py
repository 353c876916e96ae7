"""Training state on disk: one safetensors file per rank, each weight cut into named pieces.

A piece is a contiguous range of one flattened weight, so any number of ranks, at any ZeRO stage,
can read files that n ranks wrote. Nothing is pickled: loading a file runs no code.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from workers.errors import BrokenCheckpointError
from workers.model_folders.files import require_file
from workers.process.disk import open_to_readers, settle, writing
from workers.process.library_errors import reading
from workers.records.processes import FileRecord

_FACTS = "rehearsal"  # key of the JSON in a file's metadata
_ADAM = (["exp_avg", "exp_avg_sq"], ["step"])  # moments per weight; numbers shared by all weights
_SAME = ("steps", "role", "model", "dtype")  # facts that are equal on all ranks
FIX = "resume from an older checkpoint of the run"


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements [start, start + length) of one weight, flattened."""

    name: str
    shape: tuple[int, ...]  # of the whole weight
    start: int
    length: int


def file_name(role: str, rank: int) -> str:
    """Name of the file that one rank writes."""
    return f"{role}.{rank}.safetensors"


def write_state(
    path: Path, tensors: Mapping[str, Tensor], pieces: list[Piece], facts: Mapping[str, Any]
) -> FileRecord:
    """Write one rank's file, flush it to disk, and return its size and hash.

    Args:
        path: The file.
        tensors: CPU tensors; `KIND/NAME` is a 1-d piece of weight NAME.
        pieces: The piece of each weight that this rank holds.
        facts: JSON-serializable values that `StateFiles.facts` returns.

    Raises:
        CheckpointError: the file cannot be written.
    """
    cuts = {p.name: [p.start, p.length, list(p.shape)] for p in pieces}
    metadata = {_FACTS: json.dumps({"pieces": cuts, **facts})}
    with writing(path, "the training state"):
        save_file(dict(tensors), path, metadata)
        open_to_readers(path)
        return settle(path)


class StateFiles:
    """The files that all ranks of one role wrote; reads any piece of any weight.

    Raises:
        BrokenCheckpointError: there is no file, or one is damaged.
    """

    def __init__(self, folder: Path, role: str) -> None:
        # Exact names only: a copy such as "policy.0 (1).safetensors" is not part of the checkpoint.
        named = re.compile(rf"{role}\.(\d+)\.safetensors")
        paths = [path for path in sorted(folder.iterdir()) if named.fullmatch(path.name)]
        if not paths:
            raise BrokenCheckpointError(
                f"no training state of the {role}", where=str(folder), fix=FIX
            )
        self._folder = folder
        self._role = role
        self._files: dict[int, Any] = {}
        self._facts: dict[int, dict[str, Any]] = {}
        for path in paths:
            require_file(path, FIX)
            with reading(path, f"training state {path.name} does not load", FIX):
                file = safe_open(path, framework="pt")
                facts = _facts(file.metadata())
                rank = facts["rank"]
            if facts.get("role", role) != role:
                raise self._broken(f"{path.name} says that it is of the {facts['role']}")
            if rank in self._files:
                raise self._broken(f"{path.name} says rank {rank}, as another file does")
            self._files[rank], self._facts[rank] = file, facts
        if 0 not in self._files:
            raise self._broken("no file says rank 0")
        for rank, facts in self._facts.items():
            if any(facts.get(key) != self.facts.get(key) for key in _SAME):
                raise self._broken(f"ranks 0 and {rank} are not of one checkpoint")

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that rank 0 stored with its tensors."""
        return self._facts[0]

    @property
    def optimizer(self) -> tuple[int, list[str], dict[str, float]]:
        """Optimizer steps done, the kinds of moments, and the numbers shared by all weights.

        Raises:
            BrokenCheckpointError: they are not those of AdamW.
        """
        with reading(self._folder, "the optimizer's numbers cannot be used", FIX):
            steps, kinds, numbers = (self.facts[key] for key in ("steps", "kinds", "numbers"))
            if (sorted(kinds), sorted(numbers)) not in (([], []), _ADAM):
                raise ValueError(f"AdamW keeps {_ADAM}, not {kinds} and {numbers}")
            if type(steps) is not int or not all(
                0 <= n < 2**53 for n in (steps, *numbers.values())
            ):
                raise ValueError(f"{steps} steps, {numbers}")
        return steps, kinds, numbers

    def own(self, rank: int, prefix: str) -> dict[str, Tensor]:
        """The tensors `prefix/NAME` that this rank wrote, by NAME; {} if it wrote no file."""
        file = self._files.get(rank)
        if file is None:
            return {}
        keys = [key for key in file.keys() if key.startswith(f"{prefix}/")]  # noqa: SIM118
        return {key.removeprefix(f"{prefix}/"): file.get_tensor(key) for key in keys}

    def read(self, kind: str, piece: Piece) -> Tensor:
        """The elements of a piece, (length,), assembled from the files that hold them.

        Raises:
            BrokenCheckpointError: the weight is missing, has another shape, or is incomplete.
        """
        found: list[tuple[int, Tensor]] = []
        for rank, facts in self._facts.items():
            cut = facts["pieces"].get(piece.name)
            if cut is None:
                continue
            start, length, shape = cut
            if tuple(shape) != piece.shape:
                raise self._broken(f"{piece.name} has shape {shape}, not {list(piece.shape)}")
            low = max(start, piece.start)
            high = min(start + length, piece.start + piece.length)
            if low < high:
                part = self._slice(rank, f"{kind}/{piece.name}", length)
                found.append((low, part[low - start : high - start]))
        found.sort(key=lambda each: each[0])
        at = piece.start
        for low, part in found:
            at = at + len(self._finite(f"{kind} of {piece.name}", part)) if low == at else -1
        if at != piece.start + piece.length:
            raise self._broken(f"{kind} of {piece.name} is not whole")
        parts = [part for _, part in found]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def floats(self, rank: int, prefix: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors `prefix/NAME` that this rank wrote, with the names and shapes of `like`.

        Raises:
            BrokenCheckpointError: names or shapes differ from `like`, or a value is not a finite
                floating-point number.
        """
        found = self.own(rank, prefix)
        for name in sorted({*found, *like}):
            if name not in found or name not in like or found[name].shape != like[name].shape:
                raise self._broken(f"{prefix} of {name} is not that of the model")
            self._finite(f"{prefix} of {name}", found[name])
        return found

    def _slice(self, rank: int, name: str, length: int) -> Any:
        file = self._files[rank]
        with reading(self._folder, f"{name} of rank {rank} cannot be read", FIX):
            part = file.get_slice(name)
            shape = part.get_shape()
        if shape != [length]:
            raise self._broken(f"{name} of rank {rank} has shape {shape} instead of [{length}]")
        return part

    def _finite(self, what: str, values: Tensor) -> Tensor:
        if not (values.is_floating_point() and bool(values.isfinite().all())):
            raise self._broken(f"{what} holds other than finite floating-point numbers")
        return values

    def _broken(self, why: str) -> BrokenCheckpointError:
        return BrokenCheckpointError(
            f"training state of the {self._role}: {why}", where=str(self._folder), fix=FIX
        )


def _facts(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Facts from a file's metadata; raises any exception if `write_state` cannot have written them.

    The numbers are checked here because a header can claim more than the file contains.
    """
    facts = json.loads((metadata or {})[_FACTS])
    if type(facts["rank"]) is not int:
        raise TypeError("its rank is no number")
    for name, (start, length, shape) in facts["pieces"].items():
        sizes = [start, length, *shape]
        if any(type(n) is not int or n < 0 for n in sizes) or start + length > math.prod(shape):
            raise ValueError(f"{name}: no piece of a weight")
    return facts

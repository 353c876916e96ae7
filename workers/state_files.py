"""Training state on disk: one safetensors file a rank, each weight cut into named pieces.

A piece is a run of elements of one flattened weight, so files that n ranks wrote can be read by any
other number of ranks and at any ZeRO stage. Nothing is pickled: loading a file runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from workers.border import reading
from workers.disk import open_to_readers, settle, writing
from workers.errors import BrokenCheckpointError
from workers.messages import FileRecord

_FACTS = "rehearsal"  # key of the JSON in a file's metadata
_MEND = "resume from an older checkpoint of the run"


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
    """Write one rank's file, flush it to disk, and tell its size and hash.

    Args:
        path: The file.
        tensors: CPU tensors; `KIND/NAME` is a 1-d piece of weight NAME.
        pieces: What this rank keeps of each weight.
        facts: JSON-ready values that come back from `StateFiles.facts`.

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
    """The files that all ranks of one role wrote; any piece of any weight can be asked for.

    Raises:
        BrokenCheckpointError: there is no file, or one is damaged.
    """

    def __init__(self, folder: Path, role: str) -> None:
        paths = sorted(folder.glob(f"{role}.*.safetensors"))
        if not paths:
            raise BrokenCheckpointError(
                f"no training state of the {role}", where=str(folder), mend=_MEND
            )
        self._folder = folder
        self._role = role
        self._files: dict[int, Any] = {}
        self._facts: dict[int, dict[str, Any]] = {}
        for path in paths:
            if not path.is_file():
                raise self._broken(f"{path.name} is no ordinary file")
            with reading(path, f"training state {path.name} does not load", _MEND):
                file = safe_open(path, framework="pt")
                facts = json.loads((file.metadata() or {})[_FACTS])
                rank = int(facts["rank"])
                assert isinstance(facts["pieces"], dict), "its pieces are no table"
            if rank in self._files:
                raise self._broken(f"{path.name} says rank {rank}, as another file does")
            self._files[rank], self._facts[rank] = file, facts
        if 0 not in self._files:
            raise self._broken("no file says rank 0")

    @property
    def facts(self) -> dict[str, Any]:
        """What rank 0 noted beside its tensors."""
        return self._facts[0]

    def own(self, rank: int, prefix: str) -> dict[str, Tensor]:
        """The tensors `prefix/NAME` that this rank wrote, by NAME; none where it wrote no file."""
        file = self._files.get(rank)
        if file is None:
            return {}
        keys = [key for key in file.keys() if key.startswith(f"{prefix}/")]  # noqa: SIM118
        return {key.removeprefix(f"{prefix}/"): file.get_tensor(key) for key in keys}

    def read(self, kind: str, piece: Piece) -> Tensor:
        """The elements of a piece, (length,), put together from the files that hold them.

        Raises:
            BrokenCheckpointError: the weight is missing, of another shape, or not whole.
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
                part = self._files[rank].get_slice(f"{kind}/{piece.name}")
                found.append((low, part[low - start : high - start]))
        parts = [part for _, part in sorted(found, key=lambda each: each[0])]
        if sum(map(len, parts)) != piece.length:
            raise self._broken(f"{kind} of {piece.name} is not whole")
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _broken(self, why: str) -> BrokenCheckpointError:
        return BrokenCheckpointError(
            f"training state of the {self._role}: {why}", where=str(self._folder), mend=_MEND
        )

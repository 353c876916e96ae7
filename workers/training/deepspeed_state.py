"""Access to a ZeRO optimizer's state as named pieces: master copy and moments of each weight.

deepspeed's own checkpoints are pickles whose layout depends on the ZeRO stage and the number of
ranks. Here every rank names its pieces: after loading, masters and moments are bitwise equal at any
stage and on any number of ranks. Written for deepspeed 0.19.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workers.errors import CheckpointError
from workers.training.state_files import Piece, StateFiles

MASTER = "master"


@dataclass(frozen=True, slots=True)
class _Held:
    """A piece and its location in the tensor that the optimizer updates."""

    piece: Piece
    flat: Tensor  # a flat partition; at stage 0 the master of one weight
    offset: int

    def of(self, values: Tensor) -> Tensor:
        return values.detach().view(-1).narrow(0, self.offset, self.piece.length)


def training_tensors(engine: Any, stage: int) -> tuple[dict[str, Tensor], list[Piece]]:
    """Views of this rank's master weights and moments, as KIND/NAME, and their pieces."""
    tensors: dict[str, Tensor] = {}
    pieces: list[Piece] = []
    for held in _held(engine, stage):
        pieces.append(held.piece)
        tensors[f"{MASTER}/{held.piece.name}"] = held.of(held.flat)
        for kind, values in _moments(engine, stage, held.flat).items():
            tensors[f"{kind}/{held.piece.name}"] = held.of(values)
    return tensors, pieces


def optimizer_numbers(engine: Any, stage: int) -> dict[str, float]:
    """Optimizer state that is one number for all weights: Adam's step count."""
    numbers: dict[str, float] = {}
    for held in _held(engine, stage):
        for kind, value in _state(engine, stage, held.flat).items():
            if _is_number(value):
                assert numbers.setdefault(kind, float(value)) == float(value), kind
    return numbers


def moment_kinds(engine: Any, stage: int) -> list[str]:
    """Names of the optimizer state with one number per element; [] before the first step."""
    for held in _held(engine, stage):
        return list(_moments(engine, stage, held.flat))
    return []


def restore_training(
    engine: Any, stage: int, files: StateFiles, kinds: list[str], numbers: dict[str, float]
) -> None:
    """Load saved pieces into an engine before its first step, and refresh the working copies.

    Args:
        engine: deepspeed's engine.
        stage: Its ZeRO stage; 0 = one rank that holds every weight whole.
        files: The files that hold the pieces.
        kinds: Result of `moment_kinds` at the time of saving.
        numbers: Result of `optimizer_numbers` at the time of saving.

    Raises:
        BrokenCheckpointError: A piece is missing, has another shape, or is not finite.
    """
    for held in _held(engine, stage):
        state = _state(engine, stage, held.flat)
        for name, value in numbers.items():
            state.setdefault(name, torch.tensor(value, device=held.flat.device))
        for kind in kinds:
            state.setdefault(kind, torch.zeros_like(held.flat))
            held.of(state[kind]).copy_(files.read(kind, held.piece))
        held.of(held.flat).copy_(files.read(MASTER, held.piece))
    if stage == 0:
        engine.optimizer.round_masters()
    elif stage == 3:
        _refresh_partitions(engine.optimizer)
    else:
        _refresh_weights(engine, files)


def _refresh_weights(engine: Any, files: StateFiles) -> None:
    """Set the working copies, which every rank holds whole, to the rounded masters."""
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            whole = Piece(name, tuple(parameter.shape), 0, parameter.numel())
            parameter.data.copy_(files.read(MASTER, whole).view(parameter.shape))


def _refresh_partitions(optimizer: Any) -> None:
    """Set this rank's part of the working copies, then gather the small weights kept whole."""
    for master, working in zip(
        optimizer.fp32_partitioned_groups_flat, optimizer.fp16_partitioned_groups_flat, strict=True
    ):
        working.data.copy_(master.data)
    small = optimizer.persistent_parameters
    if small:
        small[0].partition(small)
        small[0].all_gather(small)


def _held(engine: Any, stage: int) -> Iterator[_Held]:
    find = (_held_whole, _held_of_mapping, _held_of_mapping, _held_of_partition)[stage]
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            yield from find(engine.optimizer, name, parameter)


def _held_whole(optimizer: Any, name: str, parameter: Any) -> Iterator[_Held]:
    """Stage 0: every weight by itself."""
    piece = Piece(name, tuple(parameter.shape), 0, parameter.numel())
    yield _Held(piece, optimizer.master(parameter), 0)


def _held_of_mapping(optimizer: Any, name: str, parameter: Any) -> Iterator[_Held]:
    """Stages 1 and 2: the flat buffer of all weights of a parameter group, in equal parts."""
    mapping = parameter._hp_mapping
    if mapping is None:  # none of its elements are in this rank's part
        return
    where, there = mapping.lp_fragment_address, mapping.hp_fragment_address
    flat = optimizer.optimizer.param_groups[mapping.param_group_index]["params"][0]
    piece = Piece(name, tuple(parameter.shape), where.start, where.numel)
    yield _Held(piece, flat, there.start)


def _held_of_partition(optimizer: Any, name: str, parameter: Any) -> Iterator[_Held]:
    """Stage 3: each weight in equal parts, the last ones padded."""
    group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    flat = optimizer.fp32_partitioned_groups_flat[group]
    if flat.numel() < offset + size:
        raise CheckpointError(
            f"the state of {name} is swapped out",
            where="ZeRO 3",
            fix="checkpoints need optimizer state in memory, not on NVMe",
        )
    start = torch.distributed.get_rank() * size
    length = min(size, parameter.ds_numel - start)
    if length > 0:
        yield _Held(Piece(name, tuple(parameter.ds_shape), start, length), flat, offset)


def _state(engine: Any, stage: int, flat: Tensor) -> dict[str, Any]:
    adam = engine.optimizer if stage == 0 else engine.optimizer.optimizer
    return adam.state[flat]


def _moments(engine: Any, stage: int, flat: Tensor) -> dict[str, Tensor]:
    state = _state(engine, stage, flat)
    return {k: v for k, v in state.items() if torch.is_tensor(v) and v.shape == flat.shape}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (torch.is_tensor(value) and value.ndim == 0)

"""Finished sequences that survive an interruption: in a checkpoint, or in the object store.

A checkpoint stores the batches that were generated ahead of training, because the weights that
sampled them are gone after a resume. Each part that the engines returned is one safetensors file,
with log-probabilities and versions.

Sequences that were finished when a trainer was lost are still in the object store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from os.path import lexists
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from orchestrator.roles.interfaces import Answer, Generation, Known, Rollouts, joined
from orchestrator.roles.rollout_group import RolloutGroup
from orchestrator.run_files.stored_arrays import check_rows, check_values
from orchestrator.session.conversations import Failure
from orchestrator.stages.ppo.queue import Batch, RolloutQueue
from workers.model_folders.files import broken, require_file
from workers.process.disk import settle, writing
from workers.process.library_errors import reading
from workers.records.arrays import IntArray, Ragged
from workers.records.generation import RolloutBatch
from workers.records.processes import FileRecord

_OFFSETS = ".offsets"
_FIX = "resume from an older checkpoint of the run"
NONE_LOST: Mapping[int, Failure] = MappingProxyType({})


def held(parts: Sequence[Rollouts], ids: IntArray, version: int) -> Generation | None:
    """Finished parts as a generation, if they are exactly the sequences that are needed now.

    Args:
        parts: Of one iteration, in order of arrival.
        ids: Of the sequences that are needed.
        version: Of the weights that would sample them.
    """
    if not parts:
        return None
    summary = joined(parts).summary
    same = np.array_equal(np.sort(summary.ids), np.sort(ids))
    return _Held(parts) if same and bool((summary.versions == version).all()) else None


class SavedRollouts:
    """Saves the waiting batches of a queue into a checkpoint, with the interface of a trainer."""

    def __init__(self, ahead: RolloutQueue, rollout: RolloutGroup) -> None:
        self._ahead = ahead
        self._rollout = rollout
        self._records: list[FileRecord] = []

    def snapshot(self, folder: str) -> Answer[None]:
        """Write all waiting batches; waits for those that are still being generated.

        Raises:
            CheckpointError: a file cannot be written.
        """
        self._records = [
            _write(Path(folder) / _name(batch.iteration, n), sequences)
            for batch in self._ahead
            for n, sequences in enumerate(self._parts(batch))
        ]
        return Known(None)

    def written(self) -> Answer[list[FileRecord]]:
        """The files of the last snapshot."""
        return Known(self._records)

    def restore(
        self, folder: str, iteration: int, ids: IntArray, lost: Mapping[int, Failure] = NONE_LOST
    ) -> Batch:
        """Load a saved batch; `lost` has those of its sequences whose environment had failed.

        Raises:
            BrokenCheckpointError: a file is damaged.
        """
        parts: list[RolloutBatch] = []
        while lexists(path := Path(folder) / _name(iteration, len(parts))):
            parts.append(_read(path))
        found = np.concatenate([np.zeros(0, np.int64), *(part.ids for part in parts)])
        if not np.array_equal(np.sort(found), np.setdiff1d(ids, sorted(lost))):
            raise broken(
                Path(folder),
                f"the sequences kept for iteration {iteration} are not the requested ones",
                _FIX,
            )
        held = [self._rollout.hold(part) for part in parts]
        return Batch(iteration, ids, _Held(held, lost))

    def _parts(self, batch: Batch) -> Iterator[RolloutBatch]:
        for part in batch.generation.parts():
            yield self._rollout.fetch(part).result()


class _Held(Generation):
    """A finished generation."""

    def __init__(self, parts: Sequence[Rollouts], lost: Mapping[int, Failure] = NONE_LOST) -> None:
        self._parts, self.lost = parts, lost

    def parts(self) -> Iterator[Rollouts]:
        yield from self._parts

    def result(self) -> Rollouts:
        return joined(self._parts)


def _name(iteration: int, part: int) -> str:
    return f"ahead-{iteration}-{part}.safetensors"


def _write(path: Path, batch: RolloutBatch) -> FileRecord:
    arrays: dict[str, np.ndarray] = {}
    for each in fields(batch):
        value = getattr(batch, each.name)
        if value is None:
            continue
        if isinstance(value, Ragged):
            arrays[each.name], arrays[each.name + _OFFSETS] = value.values, value.offsets
        else:
            arrays[each.name] = value
    with writing(path, "sequences"):
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
        return settle(path)


def _read(path: Path) -> RolloutBatch:
    require_file(path, _FIX)
    with reading(path, f"sequences in {path.name} cannot be read", _FIX):
        return _batch(load_file(path))


def _batch(arrays: dict[str, np.ndarray]) -> RolloutBatch:
    """Sequences from the arrays of `_write`; raises any exception if they are inconsistent."""
    columns: dict[str, Any] = {
        name: Ragged(array, arrays[name + _OFFSETS]) if name + _OFFSETS in arrays else array
        for name, array in arrays.items()
        if not name.endswith(_OFFSETS)
    }
    batch = RolloutBatch(**columns)
    for each in fields(batch):
        value = columns.get(each.name)
        if value is None:  # an optional one: the record itself refuses to lack others
            continue
        if each.name == "sampled":
            check_rows(each.name, Ragged(value.values.astype(np.int8), value.offsets))
        elif each.name == "earned":
            check_values(each.name, value, real=True)
        elif each.name in ("tokens", "logprobs"):
            check_rows(each.name, value, real=each.name == "logprobs")
        else:
            check_values(each.name, value, dimensions=2 if each.name == "versions" else 1)
        if len(value) != len(batch.ids):
            raise ValueError(f"{each.name} are of {len(value)} sequences, ids of {len(batch.ids)}")
    counted = batch.response_lengths
    if batch.sampled is not None:
        if (batch.sampled.lengths != counted).any():
            raise ValueError("the masks are of other responses")
        counted = np.array([int(row.sum()) for row in batch.sampled.rows()], np.int64)
    if (counted != batch.logprobs.lengths).any() or (batch.prompt_lengths < 0).any():
        raise ValueError("lengths of tokens and log-probabilities do not agree")
    return batch

"""The samples that rejection sampling trains on, kept over iterations and in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from orchestrator.batching.selection import above_threshold, best_of_prompts
from orchestrator.config.rejection import Keep, RejectionConfig
from orchestrator.roles.interfaces import Answer, Known
from orchestrator.run_files.stored_arrays import check_rows, check_values
from workers.model_folders.files import require_file
from workers.process.disk import settle, writing
from workers.process.library_errors import reading
from workers.records.arrays import FloatArray, IntArray, Ragged
from workers.records.generation import RolloutBatch
from workers.records.processes import FileRecord
from workers.records.training import TokenBatch

_FILE, _OFFSETS = "pool.safetensors", "tokens.offsets"
_FIX = "resume from an older checkpoint of the run"


@dataclass(frozen=True, slots=True)
class Samples:
    """Scored sequences."""

    ids: IntArray  # (B,) unique in the run
    prompts: IntArray  # (B,) row of the prompt data set
    scores: FloatArray  # (B,) reward units, penalties deducted; finite
    prompt_lengths: IntArray  # (B,) tokens
    tokens: Ragged  # int32, prompt then response

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, batch: RolloutBatch, scores: FloatArray) -> Samples:
        """The sequences of a batch, with (B,) scores in its order."""
        return cls(batch.ids, batch.prompt_ids, scores, batch.prompt_lengths, batch.tokens)

    @classmethod
    def none(cls) -> Samples:
        """No sequences."""
        ids = np.zeros(0, np.int64)
        return cls(ids, ids, np.zeros(0, np.float32), ids, Ragged.from_rows([], np.int32))

    def joined(self, others: Samples) -> Samples:
        """These, then the others."""
        return Samples(
            np.concatenate([self.ids, others.ids]),
            np.concatenate([self.prompts, others.prompts]),
            np.concatenate([self.scores, others.scores]),
            np.concatenate([self.prompt_lengths, others.prompt_lengths]),
            Ragged.concat([self.tokens, others.tokens]),
        )

    def select(self, rows: IntArray) -> Samples:
        """The chosen sequences, in the chosen order."""
        return Samples(
            self.ids[rows], self.prompts[rows], self.scores[rows], self.prompt_lengths[rows],
            self.tokens.select(rows),
        )  # fmt: skip

    def examples(self, rows: IntArray) -> TokenBatch:
        """The chosen sequences as supervised examples; the targets are the responses."""
        tokens, lengths = self.tokens.select(rows), self.prompt_lengths[rows]
        starts = np.repeat(tokens.offsets[:-1], tokens.lengths)
        within = np.arange(len(tokens.values)) - starts
        targets = within >= np.repeat(lengths, tokens.lengths)
        return TokenBatch(tokens, Ragged(targets, tokens.offsets))


@dataclass(frozen=True, slots=True)
class Chosen:
    """What became of the samples of an iteration."""

    kept: IntArray  # ids of new samples that are trained on
    dropped: IntArray  # ids of the others
    reused: int  # samples of earlier iterations that are trained on again


class Pool:
    """The samples to train on, with the interface of a trainer for checkpoints."""

    def __init__(self, settings: RejectionConfig) -> None:
        self._settings = settings
        self.samples = Samples.none()
        self._records: list[FileRecord] = []

    def take(self, new: Samples) -> Chosen:
        """Choose among the samples of an iteration, and with `from_all_iterations` the pool's.

        With `keep: best` each prompt has one sample in the pool. A new one takes the place of an
        earlier one only if it scores higher, so the best score of a prompt never falls.
        """
        old = self.samples if self._settings.from_all_iterations else Samples.none()
        both = old.joined(new)
        if self._settings.keep is Keep.best:
            chosen = best_of_prompts(both.prompts, both.scores, both.ids)
        else:
            chosen = above_threshold(both.scores, self._settings.threshold)
        self.samples = both.select(np.flatnonzero(chosen))
        fresh = chosen[len(old) :]
        return Chosen(new.ids[fresh], new.ids[~fresh], int(chosen[: len(old)].sum()))

    def snapshot(self, folder: str) -> Answer[None]:
        """Write the pool into a checkpoint.

        Raises:
            CheckpointError: the file cannot be written.
        """
        path = Path(folder) / _FILE
        arrays: dict[str, np.ndarray] = {
            each.name: getattr(self.samples, each.name)
            for each in fields(Samples)
            if each.name != "tokens"
        }
        tokens = self.samples.tokens
        arrays |= {"tokens": tokens.values, _OFFSETS: tokens.offsets}
        with writing(path, "the samples that are trained on"):
            save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path)
            self._records = [settle(path)]
        return Known(None)

    def written(self) -> Answer[list[FileRecord]]:
        """The file of the last snapshot."""
        return Known(self._records)

    def restore(self, folder: str) -> None:
        """Read the pool of a checkpoint.

        Raises:
            BrokenCheckpointError: the file is damaged.
        """
        path = Path(folder) / _FILE
        require_file(path, _FIX)
        with reading(path, "the samples that are trained on cannot be read", _FIX):
            self.samples = _samples(load_file(path))


def _samples(arrays: dict[str, np.ndarray]) -> Samples:
    """Samples from the arrays of `snapshot`; raises any exception if they are inconsistent."""
    tokens = Ragged(arrays["tokens"], arrays[_OFFSETS])
    check_rows("tokens", tokens)
    columns: Sequence[str] = ("ids", "prompts", "scores", "prompt_lengths")
    for name in columns:
        check_values(name, arrays[name], real=name == "scores")
        if (count := len(arrays[name])) != len(tokens):
            raise ValueError(f"{name} are of {count} sequences, tokens of {len(tokens)}")
    if (arrays["prompt_lengths"] > tokens.lengths).any() or (arrays["prompt_lengths"] < 0).any():
        raise ValueError("a prompt is longer than its sequence")
    return Samples(tokens=tokens, **{name: arrays[name] for name in columns})

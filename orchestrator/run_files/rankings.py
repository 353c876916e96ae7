"""Labeled rankings on disk, as sampled tokens: text could be tokenized differently."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from orchestrator.run_files.stored_arrays import check_rows, check_values
from workers.model_folders.files import require_file
from workers.process.disk import writing
from workers.process.library_errors import reading
from workers.records.arrays import Ragged
from workers.records.training import Ranking


def save_rankings(path: Path, rankings: Sequence[Ranking], training: int | None = None) -> None:
    """Write rankings atomically.

    Args:
        path: The file.
        rankings: What is written.
        training: How many of them, the first, are for training; None = it is not recorded.

    Raises:
        CheckpointError: the disk is full or read-only.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    sequences = Ragged.concat([r.sequences for r in rankings])
    arrays = {
        "prompt_ids": np.array([r.prompt_id for r in rankings], np.int64),
        "completions": np.array([len(r.ranks) for r in rankings], np.int64),
        "ranks": np.concatenate([r.ranks for r in rankings]),
        "tokens": sequences.values,
        "offsets": sequences.offsets,
        "prompt_lengths": np.array([r.prompt_length for r in rankings], np.int64),
    }
    rated = [r.likert for r in rankings if r.likert is not None]
    if rated and len(rated) == len(rankings):
        arrays["likert"] = np.concatenate(rated)
    soft = [r.probabilities for r in rankings if r.probabilities is not None]
    if soft:
        assert len(soft) == len(rankings), "one labeler gives all of them probabilities, or none"
        arrays["probabilities"] = np.concatenate([each.ravel() for each in soft])
    names = {"names": json.dumps([[r.source, r.annotator] for r in rankings])}
    if training is not None:  # no metadata, whose order in the file is not always the same
        arrays["training"] = np.array([training], np.int64)
    with writing(path, "the rankings"):
        save_file(arrays, temporary, names)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)


def load_rankings(path: Path) -> list[Ranking]:
    """Read the rankings that `save_rankings` wrote, in the same order.

    Raises:
        BrokenCheckpointError: the file is damaged.
    """
    train, heldout = load_split(path)
    return [*train, *heldout]


def load_split(path: Path) -> tuple[list[Ranking], list[Ranking]]:
    """The training and held-out rankings that `save_rankings` wrote, each in the same order.

    Raises:
        BrokenCheckpointError: the file is damaged.
    """
    fix = "resume from a checkpoint before the stage that made them: it then makes them again"
    require_file(path, fix)
    with reading(path, "saved rankings cannot be read", fix):
        with safe_open(path, framework="np") as file:
            names = json.loads(file.metadata()["names"])
        arrays = load_file(path)
        rankings = _rankings(arrays, names)
        training = int(arrays["training"][0]) if "training" in arrays else len(rankings)
        return rankings[:training], rankings[training:]


def _rankings(arrays: dict[str, np.ndarray], names: list[list[str]]) -> list[Ranking]:
    sequences, ranks = Ragged(arrays["tokens"], arrays["offsets"]), arrays["ranks"]
    check_rows("tokens", sequences)
    for name in ("prompt_ids", "completions", "ranks"):
        check_values(name, arrays[name])
    sizes = arrays["completions"]
    if (sizes < 0).any() or not sizes.sum() == len(ranks) == len(sequences):
        raise ValueError("there are not as many ranks as completions")
    unknown = np.zeros(len(sizes), np.int64)  # earlier versions did not write them
    prompts = arrays.get("prompt_lengths", unknown)
    check_values("prompt_lengths", prompts)
    likert = arrays.get("likert")
    soft = _matrices(arrays["probabilities"], sizes) if "probabilities" in arrays else None
    columns = (arrays["prompt_ids"], sizes, sizes.cumsum(), names, prompts)
    return [
        Ranking(
            int(i),
            sequences.select(np.arange(end - k, end)),
            ranks[end - k : end],
            *name,
            prompt_length=int(length),
            likert=None if likert is None else likert[end - k : end],
            probabilities=None if soft is None else soft[n],
        )
        for n, (i, k, end, name, length) in enumerate(zip(*columns, strict=True))
    ]


def _matrices(values: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """The (K, K) probabilities of each ranking."""
    squares = sizes * sizes
    wrong = values[~np.isnan(values)]
    if (
        values.dtype.kind != "f"
        or squares.sum() != len(values)
        or ((wrong < 0) | (wrong > 1)).any()
    ):
        raise ValueError("the probabilities of pairs are none")
    parts = np.split(values, squares.cumsum()[:-1])
    return [part.reshape(k, k) for part, k in zip(parts, sizes, strict=True)]

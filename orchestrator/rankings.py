"""Labeled rankings on disk, as the tokens that were sampled: texts would tokenize otherwise."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from workers.disk import writing
from workers.messages import Ragged, Ranking


def save_rankings(path: Path, rankings: Sequence[Ranking]) -> None:
    """Write rankings so that the file is whole or absent.

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
    }
    names = {"names": json.dumps([[r.source, r.annotator] for r in rankings])}
    with writing(path, "the rankings"):
        save_file(arrays, temporary, names)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)


def load_rankings(path: Path) -> list[Ranking]:
    """Rankings that `save_rankings` wrote, in their order."""
    arrays = load_file(path)
    with safe_open(path, framework="np") as file:
        names = json.loads(file.metadata()["names"])
    sequences = Ragged(arrays["tokens"], arrays["offsets"])
    ends = arrays["completions"].cumsum()
    return [
        Ranking(
            int(i),
            sequences.select(np.arange(end - k, end)),
            arrays["ranks"][end - k : end],
            *name,
        )
        for i, k, end, name in zip(
            arrays["prompt_ids"], arrays["completions"], ends, names, strict=True
        )
    ]

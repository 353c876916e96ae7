"""Token rows as supervised batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workers.records.arrays import IntArray, Ragged
from workers.records.training import TokenBatch

TokenRows = Sequence[Sequence[int] | IntArray]


def document_batch(rows: TokenRows) -> TokenBatch:
    """Rows in which every token is a target (losses never count the first token of a row)."""
    return TokenBatch(
        Ragged.from_rows(rows, np.int32),
        Ragged.from_rows([np.ones(len(row), bool) for row in rows], bool),
    )


def demonstration_batch(prompts: TokenRows, responses: TokenRows) -> TokenBatch:
    """Rows of prompt then response; targets are the response tokens alone."""
    pairs = list(zip(prompts, responses, strict=True))
    return TokenBatch(
        Ragged.from_rows([[*prompt, *response] for prompt, response in pairs], np.int32),
        Ragged.from_rows([np.arange(len(p) + len(r)) >= len(p) for p, r in pairs], bool),
    )


def stack_batches(first: TokenBatch, second: TokenBatch) -> TokenBatch:
    """The rows of both, in order; rows of either may hold several documents."""
    positions = None
    if first.positions is not None or second.positions is not None:
        positions = Ragged.concat([_positions(first), _positions(second)])
    return TokenBatch(
        Ragged.concat([first.tokens, second.tokens]),
        Ragged.concat([first.targets, second.targets]),
        positions,
    )


def _positions(batch: TokenBatch) -> Ragged:
    if batch.positions is not None:
        return batch.positions
    return Ragged.from_rows([np.arange(n) for n in batch.tokens.lengths], np.int32)

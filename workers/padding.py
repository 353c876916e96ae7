"""Between rows stored end to end and right-padded tensors.

Two grids of padded rows: (B, S) has one column a token. (B, S-1) has one column a prediction:
column j is what the model says at position j about token j + 1, so the number that belongs to
token t stands in column t - 1. `grid[mask]` reads the True cells row by row, which is the order in
which `Ragged` stores them: numbers of tokens are kept flat, (N,), wherever that will do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.messages import IntArray, Ragged

_DUMMY_TOKENS = 2  # the shortest row that makes a prediction


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """Right-padded token rows, ready for a model. A batch without rows holds one dummy row."""

    input_ids: Tensor  # (B, S) int64
    attention_mask: Tensor | None  # (B, S) int64, 1 = a token of the row; None = see positions
    position_ids: Tensor  # (B, S) int64
    lengths: Tensor  # (B,) tokens in each row; 0 = dummy

    @property
    def labels(self) -> Tensor:
        """(B, S-1) the token that each prediction is about."""
        return self.input_ids[:, 1:]


def pad_rows(
    rows: Ragged, device: torch.device | str = "cpu", positions: Ragged | None = None
) -> PaddedRows:
    """Pad rows of token ids on the right.

    Where documents share rows, transformers finds their borders in the position ids, and only
    without an attention mask: one of ones would let documents see each other.

    Zero rows give one dummy row of two tokens whose length is 0, so that every mask made from
    lengths is empty: a rank that is short of work runs it for the sake of its peers' collectives.

    Args:
        rows: B rows of token ids.
        device: Where the tensors shall live.
        positions: Position of each token within its document, where documents share rows.
    """
    if len(rows) == 0:
        ids = torch.zeros((1, _DUMMY_TOKENS), dtype=torch.int64, device=device)
        return PaddedRows(
            ids,
            torch.ones_like(ids),
            torch.arange(_DUMMY_TOKENS, device=device)[None],
            torch.zeros(1, dtype=torch.int64, device=device),
        )
    lengths = torch.from_numpy(rows.lengths).to(device)
    width = max(int(rows.lengths.max()), _DUMMY_TOKENS)
    columns = torch.arange(width, device=device)
    inside = columns[None, :] < lengths[:, None]
    ids = fill_grid(rows, inside, torch.int64)
    if positions is not None:
        return PaddedRows(ids, None, fill_grid(positions, inside, torch.int64), lengths)
    return PaddedRows(ids, inside.long(), columns.expand(len(rows), width), lengths)


def fill_grid(rows: Ragged, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Spread values stored end to end over the True cells of `mask`, row by row; 0 elsewhere.

    Args:
        rows: B rows; row i has as many values as row i of the mask has True cells.
        mask: (B, W) bool.
        dtype: Of the result.
    """
    grid = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    grid[mask] = torch.tensor(rows.values, dtype=dtype, device=mask.device)
    return grid


def response_predictions(rows: PaddedRows, prompt_lengths: IntArray) -> Tensor:
    """Mark the predictions that are about response tokens: (B, S-1) bool.

    Args:
        rows: B padded rows of prompt then response.
        prompt_lengths: (B,) tokens of each prompt, at least 1; empty for a dummy batch.
    """
    starts = torch.zeros_like(rows.lengths)
    starts[: len(prompt_lengths)] = torch.tensor(prompt_lengths, device=starts.device)
    tokens = torch.arange(1, rows.input_ids.shape[1], device=starts.device)[None]
    return (tokens >= starts[:, None]) & (tokens < rows.lengths[:, None])


def target_predictions(rows: PaddedRows, targets: Ragged) -> Tensor:
    """Mark the predictions that are about target tokens: (B, S-1) bool.

    The first token of a row has no predecessor and never counts.

    Args:
        rows: B padded rows.
        targets: B rows of bool, one a token; no rows for a dummy batch.
    """
    columns = torch.arange(rows.input_ids.shape[1], device=rows.lengths.device)
    inside = columns[None, :] < rows.lengths[:, None]
    return fill_grid(targets, inside, torch.bool)[:, 1:]


def last_token_values(grid: Tensor, lengths: Tensor) -> Tensor:
    """Number at the last token of each row: (B, S), (B,) to (B,). Dummy rows give column 0."""
    last = (lengths - 1).clamp(min=0)
    return grid.gather(1, last[:, None])[:, 0]


def token_budget_batches(lengths: IntArray, budget: int) -> list[IntArray]:
    """Deal rows, sorted by length, into batches whose padded size stays within a token budget.

    A single row that is longer than the budget is a batch of its own.

    Args:
        lengths: (B,) tokens of each row.
        budget: Most tokens of a batch, padding included.

    Returns:
        Row indices of each batch; every row appears exactly once.
    """
    batches: list[IntArray] = []
    start = 0
    order = np.argsort(lengths, kind="stable")
    for end in range(1, len(order) + 1):
        full = end == len(order) or (end + 1 - start) * lengths[order[end]] > budget
        if full:
            batches.append(order[start:end])
            start = end
    return batches

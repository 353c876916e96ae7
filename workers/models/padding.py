"""Model inputs from ragged rows, padded or packed, and the cells to read outputs from.

A model's input is a grid of R rows and C columns. Padded: one sequence per row; packed: all
sequences end to end in one row. Cells of the grid are numbered row by row, and the model's output
in a cell predicts the token in the next cell. Per-token outputs are read at a flat list of cells,
(N,), in the order in which `Ragged` stores the tokens, in both layouts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.models.packed_attention import sequence_lengths
from workers.records.arrays import IntArray, Ragged

_DUMMY_TOKENS = 2  # the shortest row with a prediction


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Sequences in a model's input layout. A batch without sequences has one dummy row."""

    input_ids: Tensor  # (R, C) int64
    # (R, C) int64, 1 = a token; packed: see `packed_attention`; None = derived from position ids
    attention_mask: Tensor | None
    position_ids: Tensor  # (R, C) int64
    starts: IntArray  # (B,) cell of the first token of each sequence; none for a dummy
    lengths: IntArray  # (B,) tokens of each sequence

    def labels(self, cells: Tensor) -> Tensor:
        """(N,) the tokens that these cells predict."""
        return self.input_ids.flatten()[cells + 1]


def pad_rows(
    rows: Ragged, device: torch.device | str = "cpu", positions: Ragged | None = None
) -> TokenRows:
    """Pad rows of token ids on the right.

    If documents share rows, transformers derives their borders from the position ids, but only
    without an attention mask: a mask of ones would let documents attend to each other.

    Zero rows give one dummy row of two tokens: a rank without work runs it to take part in the
    collectives.

    Args:
        rows: B rows of token ids.
        device: Device of the tensors.
        positions: Position of each token within its document, if documents share rows.
    """
    if len(rows) == 0:
        return _dummy(device)
    width = max(int(rows.lengths.max()), _DUMMY_TOKENS)
    columns = np.arange(width)
    inside = columns < rows.lengths[:, None]
    starts = np.arange(len(rows), dtype=np.int64) * width
    ids, mask = _grid(rows, inside, device), torch.from_numpy(inside).to(device)
    if positions is not None:
        return TokenRows(ids, None, _grid(positions, inside, device), starts, rows.lengths)
    at = torch.from_numpy(columns).to(device).expand(len(rows), width)
    return TokenRows(ids, mask.long(), at, starts, rows.lengths)


def pack_rows(
    rows: Ragged, device: torch.device | str = "cpu", positions: Ragged | None = None
) -> TokenRows:
    """Lay rows of token ids end to end in one row; only for models loaded with `packed`.

    Args:
        rows: B rows of token ids; zero rows give a dummy.
        device: Device of the tensors.
        positions: Position of each token within its document, if documents share rows.
    """
    if len(rows.values) < _DUMMY_TOKENS:
        return pad_rows(rows, device)
    starts, lengths = rows.offsets[:-1], rows.lengths
    at = np.arange(len(rows.values)) - np.repeat(starts, lengths)
    if positions is not None:
        at = positions.values.astype(np.int64)
    borders = np.append(np.flatnonzero(at == 0), len(at))
    return TokenRows(
        torch.tensor(rows.values, dtype=torch.int64, device=device)[None],
        sequence_lengths(np.diff(borders).tolist()),
        torch.from_numpy(at).to(device)[None],
        starts,
        lengths,
    )


def response_cells(
    rows: TokenRows, prompt_lengths: IntArray, sampled: Ragged | None = None
) -> Tensor:
    """Cells that predict response tokens, (N,).

    Args:
        rows: B sequences of prompt then response.
        prompt_lengths: (B,) tokens of each prompt, at least 1; empty for a dummy batch.
        sampled: bool, (T,) per row: the response tokens to predict; None = all. The others get no
            cell, so nothing is computed of them and their logits have no gradient.
    """
    counts = rows.lengths - prompt_lengths
    first = rows.starts + prompt_lengths - 1
    cells = _cells(np.repeat(first - (counts.cumsum() - counts), counts), rows)
    if sampled is None:
        return cells
    assert np.array_equal(sampled.lengths, counts), "a mask of other responses"
    return cells[torch.from_numpy(np.flatnonzero(sampled.values)).to(cells.device)]


def target_cells(rows: TokenRows, targets: Ragged) -> Tensor:
    """Cells that predict target tokens, (N,).

    The first token of a sequence has no predecessor and never counts.

    Args:
        rows: B sequences.
        targets: B rows of bool, one per token; no rows for a dummy batch.
    """
    before = np.repeat(rows.starts - targets.offsets[:-1], targets.lengths) - 1
    chosen = counted_targets(targets)
    return torch.from_numpy(before[chosen] + chosen).to(rows.input_ids.device)


def counted_targets(targets: Ragged) -> IntArray:
    """(N,) indices of tokens (stored end to end) that are targets, not the first of their row."""
    counted = targets.values.astype(np.bool_)
    counted[targets.offsets[:-1][targets.lengths > 0]] = False
    return np.flatnonzero(counted)


def last_cells(rows: TokenRows) -> Tensor:
    """Cell of the last token of each sequence, (B,); the cell before it if it is empty."""
    last = np.maximum(rows.starts + rows.lengths - 1, 0)
    return torch.from_numpy(last).to(rows.input_ids.device)


def _cells(before: IntArray, rows: TokenRows) -> Tensor:
    """`before` plus 0, 1, 2, ..., as a tensor."""
    return torch.from_numpy(before + np.arange(len(before))).to(rows.input_ids.device)


def _dummy(device: torch.device | str) -> TokenRows:
    ids = torch.zeros((1, _DUMMY_TOKENS), dtype=torch.int64, device=device)
    positions, none = torch.arange(_DUMMY_TOKENS, device=device)[None], np.zeros(0, np.int64)
    return TokenRows(ids, torch.ones_like(ids), positions, none, none)


def _grid(rows: Ragged, inside: np.ndarray, device: torch.device | str) -> Tensor:
    """Spread values stored end to end over the True cells of `inside`, row by row; 0 elsewhere."""
    grid = np.zeros(inside.shape, np.int64)
    grid[inside] = rows.values
    return torch.from_numpy(grid).to(device)

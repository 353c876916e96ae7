"""Attention for sequences that lie end to end in one row: each sees itself alone, without padding.

The usual way, one block-diagonal mask over the row, costs the square of the row's length. Here
sequences of like length are cut out of the row and attended to together, so the cost is that of the
sequences. transformers hands a four-dimensional `attention_mask` on to every layer unseen, and that
is how their lengths get there, through recomputation in a backward pass too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "packed_sdpa"  # transformers' `attn_implementation`
_MARK = torch.int32  # no mask of transformers has this dtype
_SLACK = 0.8  # sequences attended to together are at least this share of their longest


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences of like length."""

    cells: Tensor  # (b * L,) columns of the row; of padding, some column of the same sequence
    size: tuple[int, int]  # b, L
    inside: Tensor | None  # (b * L',) which of the b * L are no padding; None = all


@dataclass(frozen=True, slots=True)
class _Plan:
    groups: tuple[_Group, ...]
    places: Tensor  # (T,) where the answer of each column stands when groups are end to end


def sequence_lengths(lengths: Sequence[int]) -> Tensor:
    """What to pass as `attention_mask` of a row (1, T) that holds sequences of these lengths."""
    return torch.tensor(lengths, dtype=_MARK).view(1, 1, 1, -1)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each sequence of a packed row; torch's own for any other mask.

    Args:
        module: the attention layer.
        query: (1, H, T, D).
        key: (1, H', T, D); H' divides H.
        value: (1, H', T, D).
        attention_mask: what `sequence_lengths` gave.
        options: transformers' own, `sliding_window` among them.

    Returns:
        (1, T, H, D), and no attention weights.
    """
    if attention_mask is None or attention_mask.dtype != _MARK:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    plan = _plan(tuple(attention_mask.flatten().tolist()), query.device)
    answers: list[Tensor] = []
    for group in plan.groups:
        q, k, v = (_cut(x, group) for x in (query, key, value))
        mask = _window(group.size[1], options.get("sliding_window"), query.device)
        # Padding stands behind its sequence, where causal attention does not look.
        answer, _ = sdpa_attention_forward(module, q, k, v, mask, **options)
        flat = answer.flatten(0, 1)
        answers.append(flat if group.inside is None else flat.index_select(0, group.inside))
    return torch.cat(answers).index_select(0, plan.places)[None], None


def _cut(x: Tensor, group: _Group) -> Tensor:
    """(1, H, T, D) to (b, H, L, D)."""
    chosen = x[0].index_select(1, group.cells)
    return chosen.view(x.shape[1], *group.size, x.shape[3]).transpose(0, 1)


def _window(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """(L, L) mask of the last `window` tokens, where that is less than everything."""
    if window is None or length <= window:
        return None
    at = torch.arange(length, device=device)
    distance = at[:, None] - at[None, :]
    return (distance >= 0) & (distance < window)


@lru_cache(maxsize=4)  # all layers of a pass, and its backward, ask for the same one
def _plan(lengths: tuple[int, ...], device: torch.device) -> _Plan:
    sizes = torch.tensor(lengths)
    starts = sizes.cumsum(0) - sizes
    order = sizes.argsort(descending=True, stable=True)
    groups: list[_Group] = []
    columns: list[Tensor] = []
    first = 0
    while first < len(order):
        longest = int(sizes[order[first]])
        many = int((sizes[order[first:]] >= _SLACK * longest).sum())
        chosen = order[first : first + many]
        at = torch.arange(longest)
        real = at < sizes[chosen, None]
        cells = starts[chosen, None] + torch.where(real, at, 0)
        columns.append(cells[real])
        inside = None if bool(real.all()) else real.flatten().nonzero()[:, 0].to(device)
        groups.append(_Group(cells.flatten().to(device), (many, longest), inside))
        first += many
    return _Plan(tuple(groups), torch.cat(columns).argsort().to(device))


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)

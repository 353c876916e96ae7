"""Attention for packed rows: sequences end to end, each attending only to itself, no padding.

The usual way, one block-diagonal mask over the row, costs the square of the row's length. Here
sequences of similar length are cut out of the row and processed as a batch, so the cost is that of
the sequences. The `attention_mask` carries the sequence lengths: transformers passes a
four-dimensional one to every layer unchanged, also when a backward pass recomputes activations.
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
_SLACK = 0.8  # minimum length in a group, as a fraction of its longest sequence


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences of similar length."""

    cells: Tensor  # (b * L,) columns of the row; for padding, the first column of the sequence
    size: tuple[int, int]  # b, L
    inside: Tensor | None  # indices of the b * L that are not padding; None = all


@dataclass(frozen=True, slots=True)
class _Plan:
    groups: tuple[_Group, ...]
    places: Tensor  # (T,) index of each column's result in the concatenated groups


def sequence_lengths(lengths: Sequence[int]) -> Tensor:
    """The `attention_mask` of a row (1, T) that holds sequences of these lengths."""
    return torch.tensor(lengths, dtype=_MARK).view(1, 1, 1, -1)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each sequence of a packed row; torch's sdpa for any other mask.

    Args:
        module: the attention layer.
        query: (1, H, T, D).
        key: (1, H', T, D); H' divides H.
        value: (1, H', T, D).
        attention_mask: result of `sequence_lengths`.
        options: options of transformers, such as `sliding_window`.

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
        # Padding follows its sequence, so causal attention does not see it.
        answer, _ = sdpa_attention_forward(module, q, k, v, mask, **options)
        flat = answer.flatten(0, 1)
        answers.append(flat if group.inside is None else flat.index_select(0, group.inside))
    return torch.cat(answers).index_select(0, plan.places)[None], None


def _cut(x: Tensor, group: _Group) -> Tensor:
    """(1, H, T, D) to (b, H, L, D)."""
    chosen = x[0].index_select(1, group.cells)
    return chosen.view(x.shape[1], *group.size, x.shape[3]).transpose(0, 1)


def _window(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """(L, L) mask of the last `window` tokens; None if the window covers all."""
    if window is None or length <= window:
        return None
    at = torch.arange(length, device=device)
    distance = at[:, None] - at[None, :]
    return (distance >= 0) & (distance < window)


@lru_cache(maxsize=4)  # shared by all layers of a pass and its backward
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

"""Numbers of tokens and sequences under a model: what trainers and frozen scorers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from workers.errors import NonFiniteError
from workers.experience import gather_rollouts
from workers.messages import (
    FloatArray,
    IntArray,
    Ragged,
    RolloutBatch,
    TextLoss,
    TokenBatch,
    TokenField,
    Work,
)
from workers.ops import token_logprobs
from workers.padding import (
    PaddedRows,
    last_token_values,
    pad_rows,
    response_predictions,
    target_predictions,
)

Forward = Callable[[PaddedRows], Tensor]  # rows -> (B, S, V) logits or (B, S, 1) values, float32
Device = torch.device | str


def text_nll(forward: Forward, batch: TokenBatch, device: Device) -> tuple[Tensor, IntArray]:
    """Negative log-likelihood (N,) of each target token, nats, and (N,) the row that it is in."""
    rows = pad_rows(batch.tokens, device, batch.positions)
    mask = target_predictions(rows, batch.targets)
    # Selected before the softmax: what stands at uncounted positions is never touched.
    nll = -token_logprobs(forward(rows)[:, :-1][mask], rows.labels[mask])
    return nll, mask.nonzero()[:, 0].cpu().numpy()


@torch.no_grad()
def text_loss(forward: Forward, batch: TokenBatch, device: Device) -> TextLoss:
    """Summed loss of the target tokens of a batch, nats."""
    nll, _ = text_nll(forward, batch, device)
    return TextLoss(float(nll.double().sum()), nll.numel())


@torch.no_grad()
def row_losses(forward: Forward, batch: TokenBatch, device: Device) -> FloatArray:
    """Summed loss of the target tokens of each row, (B,) nats."""
    nll, rows = text_nll(forward, batch, device)
    return np.bincount(rows, nll.double().cpu().numpy(), len(batch)).astype(np.float32)


@torch.no_grad()
def response_logprobs(
    forward: Forward,
    work: Work,
    shards: Sequence[RolloutBatch],
    temperature: float,
    device: Device,
) -> TokenField:
    """Log-probability of every response token of a share of work, nats.

    Args:
        forward: Rows to logits.
        work: Which sequences, in which micro-batches.
        shards: Batches that together hold them.
        temperature: Divides the logits.
        device: Where the model is.

    Raises:
        NonFiniteError: names the sequences.
    """

    def read(rows: PaddedRows, mask: Tensor) -> Tensor:
        return token_logprobs(forward(rows)[:, :-1][mask], rows.labels[mask], temperature)

    return _response_field("log-probability", read, work, shards, device)


@torch.no_grad()
def response_values(
    forward: Forward, work: Work, shards: Sequence[RolloutBatch], device: Device
) -> TokenField:
    """Value of the state before every response token of a share of work, reward units.

    Raises:
        NonFiniteError: names the sequences.
    """

    def read(rows: PaddedRows, mask: Tensor) -> Tensor:
        return forward(rows)[:, :-1, 0][mask]

    return _response_field("value", read, work, shards, device)


@torch.no_grad()
def sequence_scores(
    forward: Forward, rows: Ragged, batches: Sequence[IntArray], device: Device
) -> FloatArray:
    """Number at the last token of each row, (B,), reward units; NaN and infinities stay."""
    scores = np.full(len(rows), np.nan, dtype=np.float32)
    for chosen in batches:
        padded = pad_rows(rows.select(chosen), device)
        last = last_token_values(forward(padded)[:, :, 0], padded.lengths)
        scores[chosen] = last[: len(chosen)].cpu().numpy()
    return scores


def _response_field(
    what: str,
    read: Callable[[PaddedRows, Tensor], Tensor],
    work: Work,
    shards: Sequence[RolloutBatch],
    device: Device,
) -> TokenField:
    mine = gather_rollouts(shards, work.ids)
    parts = [np.zeros(0, np.float32)]
    for part in _consecutive(work):
        batch = mine.select(part)
        rows = pad_rows(batch.tokens, device)
        mask = response_predictions(rows, batch.prompt_lengths)
        parts.append(read(rows, mask).cpu().numpy())
    lengths = mine.response_lengths
    numbers = np.concatenate(parts)
    # After the last pass: a rank that stopped half-way would leave its peers in a collective.
    _require_finite(what, numbers, np.repeat(mine.ids, lengths))
    offsets = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
    return TokenField(mine.ids, Ragged(numbers, offsets))


def _consecutive(work: Work) -> list[IntArray]:
    """Rows of each micro-batch within `work.ids`, which lists them end to end."""
    sizes = [len(ids) for ids in work.micro_batches]
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]) if sizes else []


def _require_finite(what: str, numbers: FloatArray, names: IntArray) -> None:
    bad = np.unique(names[~np.isfinite(numbers)])
    if len(bad):
        raise NonFiniteError(
            f"a {what} is not finite in sequences {', '.join(map(str, bad[:5]))}",
            mend="lower the learning rate, or look at these sequences",
        )

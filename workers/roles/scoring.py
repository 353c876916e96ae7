"""Losses, logprobs, values and scores under a model, for trainers and frozen models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from workers.errors import NonFiniteError
from workers.models.forward import ModelPasses
from workers.models.padding import (
    TokenRows,
    counted_targets,
    response_cells,
    target_cells,
)
from workers.records.arrays import FloatArray, IntArray, Ragged
from workers.records.gather import gather_rollouts
from workers.records.generation import RolloutBatch
from workers.records.training import TextLoss, TokenBatch, TokenField, Work

Device = torch.device | str


def text_nll(model: ModelPasses, batch: TokenBatch, device: Device) -> tuple[Tensor, IntArray]:
    """Negative log-likelihood (N,) of each target token, nats, and its row (N,)."""
    rows = model.lay(batch.tokens, device, batch.positions)
    logprobs, _ = model.logprobs(rows, target_cells(rows, batch.targets))
    owners = np.repeat(np.arange(len(batch)), batch.tokens.lengths)
    return -logprobs, owners[counted_targets(batch.targets)]


@torch.no_grad()
def text_loss(model: ModelPasses, batch: TokenBatch, device: Device) -> TextLoss:
    """Summed loss of the target tokens of a batch, nats."""
    nll, _ = text_nll(model, batch, device)
    return TextLoss(float(nll.double().sum()), nll.numel())


@torch.no_grad()
def row_losses(model: ModelPasses, batch: TokenBatch, device: Device) -> FloatArray:
    """Summed loss of the target tokens of each row, (B,) nats."""
    nll, rows = text_nll(model, batch, device)
    return np.bincount(rows, nll.cpu().numpy(), len(batch)).astype(np.float32)


@torch.no_grad()
def response_logprobs(
    model: ModelPasses,
    work: Work,
    shards: Sequence[RolloutBatch],
    temperature: float,
    device: Device,
) -> TokenField:
    """Log-probability of every sampled token of one rank's share of the work, nats.

    Args:
        model: A language model.
        work: The sequences, split into micro-batches.
        shards: Batches that together hold them.
        temperature: Divides the logits.
        device: Device of the model.

    Raises:
        NonFiniteError: names the sequences.
    """

    def read(rows: TokenRows, cells: Tensor) -> Tensor:
        return model.logprobs(rows, cells, temperature, sampled=True)[0]

    return _response_field("log-probability", model, read, work, shards, device)


@torch.no_grad()
def response_values(
    model: ModelPasses, work: Work, shards: Sequence[RolloutBatch], device: Device
) -> TokenField:
    """Value of the state before every sampled token of one rank's share, reward units.

    Raises:
        NonFiniteError: names the sequences.
    """
    return _response_field("value", model, model.values, work, shards, device)


def _response_field(
    what: str,
    model: ModelPasses,
    read: Callable[[TokenRows, Tensor], Tensor],
    work: Work,
    shards: Sequence[RolloutBatch],
    device: Device,
) -> TokenField:
    mine = gather_rollouts(shards, work.ids)
    parts = [np.zeros(0, np.float32)]
    for part in _consecutive(work):
        batch = mine.select(part)
        rows = model.lay(batch.tokens, device)
        cells = response_cells(rows, batch.prompt_lengths, batch.sampled)
        parts.append(read(rows, cells).cpu().numpy())
    lengths = mine.sampled_lengths
    numbers = np.concatenate(parts)
    # Raise only after the last pass: a rank that stops earlier leaves its peers in a collective.
    _require_finite(what, numbers, np.repeat(mine.ids, lengths))
    offsets = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
    return TokenField(mine.ids, Ragged(numbers, offsets))


def _consecutive(work: Work) -> list[IntArray]:
    """Row numbers of each micro-batch within `work.ids`, their concatenation."""
    sizes = [len(ids) for ids in work.micro_batches]
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]) if sizes else []


def _require_finite(what: str, numbers: FloatArray, names: IntArray) -> None:
    bad = np.unique(names[~np.isfinite(numbers)])
    if len(bad):
        raise NonFiniteError(
            f"a {what} is not finite in sequences {', '.join(map(str, bad[:5]))}",
            fix="lower the learning rate, or look at these sequences",
            ids=tuple(bad.tolist()),
        )

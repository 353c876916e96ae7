"""The reference model: frozen, for PPO's KL penalty and for the loss of plain text."""

from __future__ import annotations

import numpy as np

from workers.errors import RoleError
from workers.models.frozen_model import FrozenModel
from workers.models.load import load_causal_lm
from workers.models.row_packing import token_budget_batches
from workers.records.arrays import FloatArray
from workers.records.generation import RolloutBatch
from workers.records.processes import RoleInfo
from workers.records.specs import FrozenModelSpec
from workers.records.training import TokenBatch, TokenField, Work
from workers.roles.scoring import response_logprobs, row_losses


class ReferenceWorker:
    """One replica of the reference model; replicas share no state."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._model: FrozenModel | None = None

    def load(self, spec: FrozenModelSpec) -> RoleInfo:
        """Load a model; replaces the previous one.

        Raises:
            MissingCheckpointError: no such folder.
            BrokenCheckpointError: the folder does not hold the whole model.
        """
        self._model = None
        model = load_causal_lm(
            spec.checkpoint, dtype=spec.dtype, attention=spec.attention, packed=spec.packed
        )
        self._model = FrozenModel(model, spec)
        return RoleInfo.here("reference", self.rank, spec.device)

    def logprobs(self, work: Work, shards: list[RolloutBatch], temperature: float) -> TokenField:
        """Log-probabilities of this replica's response tokens, nats.

        Raises:
            NonFiniteError: names the sequences.
        """
        model = self._loaded()
        return response_logprobs(model.passes, work, shards, temperature, model.device)

    def row_losses(self, batch: TokenBatch) -> FloatArray:
        """Summed loss of each row's target tokens, (B,) nats."""
        model = self._loaded()
        losses = np.zeros(len(batch), np.float32)
        packed, lengths = model.passes.packed, batch.tokens.lengths
        for rows in token_budget_batches(lengths, model.budget, packed=packed):
            losses[rows] = row_losses(model.passes, batch.select(rows), model.device)
        return losses

    def _loaded(self) -> FrozenModel:
        if self._model is None:
            raise RoleError("no model is loaded", where=f"reference rank {self.rank}")
        return self._model

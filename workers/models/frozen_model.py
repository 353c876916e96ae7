"""A model for inference only, and scores of whole sequences: plain torch, no process group."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from workers.models.forward import ModelPasses
from workers.models.padding import last_cells
from workers.models.row_packing import token_budget_batches
from workers.records.arrays import FloatArray, Ragged
from workers.records.specs import FrozenModelSpec


class FrozenModel:
    """A model on its device, without gradients and dropout."""

    def __init__(self, model: PreTrainedModel, spec: FrozenModelSpec) -> None:
        torch.set_num_threads(spec.threads)
        self.device = torch.device(spec.device)
        self.budget = spec.micro_batch_tokens  # tokens per forward pass, padding included
        nn.Module.to(model.eval().requires_grad_(False), self.device)
        self.passes = ModelPasses(
            model,
            packed=spec.packed,
            logits_bytes=spec.logits_bytes,
            vocabulary=spec.vocabulary,
        )


@torch.no_grad()
def sequence_scores(
    model: ModelPasses, rows: Ragged, budget: int, device: torch.device | str
) -> FloatArray:
    """Score of each row, (B,), reward units: the scalar at its last token, also if not finite.

    Args:
        model: A model with a scalar head.
        rows: B sequences, none of them empty.
        budget: Tokens per forward pass, padding included.
        device: Device of the model.
    """
    scores = np.full(len(rows), np.nan, dtype=np.float32)
    for chosen in token_budget_batches(rows.lengths, budget, packed=model.packed):
        laid = model.lay(rows.select(chosen), device)
        scores[chosen] = model.values(laid, last_cells(laid)).cpu().numpy()
    return scores

"""A model that only scores: plain torch, no process group."""

from __future__ import annotations

import os
import platform

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.messages import RoleInfo
from workers.models import forward_logits
from workers.padding import PaddedRows
from workers.specs import FrozenModelSpec


class FrozenModel:
    """Weights on their device, without gradients and without dropout."""

    def __init__(self, model: PreTrainedModel, spec: FrozenModelSpec) -> None:
        torch.set_num_threads(spec.threads)
        self.device = torch.device(spec.device)
        self.budget = spec.micro_batch_tokens  # padded tokens in one pass
        self._model: nn.Module = model.eval().requires_grad_(False)
        nn.Module.to(model, self.device)

    def logits(self, rows: PaddedRows) -> Tensor:
        """Run the model on padded rows: (B, S, V) or (B, S, 1), float32."""
        with torch.no_grad():
            return forward_logits(self._model, rows)


def identity(role: str, rank: int, device: str) -> RoleInfo:
    """Who and where this process is."""
    return RoleInfo(role, rank, os.getpid(), platform.node(), device)

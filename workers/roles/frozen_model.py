"""A model for inference only: plain torch, no process group."""

from __future__ import annotations

import os
import platform

import torch
from torch import nn
from transformers import PreTrainedModel

from workers.models.forward import ModelPasses
from workers.records.processes import RoleInfo
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


def identity(role: str, rank: int, device: str) -> RoleInfo:
    """Identity and location of this process."""
    return RoleInfo(role, rank, os.getpid(), platform.node(), device)

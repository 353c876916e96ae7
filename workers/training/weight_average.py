"""Exponential moving average of the weights of a trainer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

NamedTensors = list[tuple[str, Tensor]]


class WeightAverage:
    """`average <- d * average + (1 - d) * weights` after every optimizer step, kept in float32.

    InstructGPT (arXiv 2203.02155, appendix C.4) averages the PPO policy with d = .992. One rank
    keeps the average in host memory; the others only take part in gathering the weights.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._average: dict[str, Tensor] = {}

    def start(self, buckets: Iterable[NamedTensors], *, keep: bool) -> None:
        """Set the average to the current weights."""
        for bucket in buckets:
            if keep:
                self._average.update(
                    (name, w.to("cpu", torch.float32, copy=True)) for name, w in bucket
                )

    def update(self, buckets: Iterable[NamedTensors], *, keep: bool) -> None:
        """Update the average with the weights after a step."""
        for bucket in buckets:
            if keep:
                for name, w in bucket:
                    self._average[name].lerp_(w.to("cpu", torch.float32), 1.0 - self._decay)

    def cast_like(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """`weights`, with averaged ones replaced by their average in the weight's dtype."""
        averaged = {n: average.to(weights[n].dtype) for n, average in self._average.items()}
        return weights | averaged

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The average by name, float32; empty on ranks that do not keep it."""
        return self._average

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Resume from a saved average."""
        self._average = dict(tensors)

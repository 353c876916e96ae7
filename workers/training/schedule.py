"""The learning rate of each optimizer step."""

from __future__ import annotations

import math

from workers.records.specs import OptimizerSpec


def learning_rate(spec: OptimizerSpec, step: int) -> float:
    """Learning rate of optimizer step `step` (from 0).

    Linear warm-up, then constant, or linear or cosine decay from lr to lr * min_ratio over the
    remaining steps. Warm-up starts at lr * start_ratio and reaches lr after `warmup` steps
    (InstructGPT, appendix C.4, starts at .1); with a start_ratio of 0 it is
    lr * (step + 1) / warmup, so that no step has rate 0.

    Args:
        spec: Peak rate and shape; steps beyond `total_steps` keep the final rate.
        step: Number of steps already taken.
    """
    peak, floor = spec.learning_rate, spec.min_learning_rate_ratio
    if step < spec.warmup_steps:
        start = spec.warmup_start_ratio
        if start == 0.0:
            return peak * (step + 1) / spec.warmup_steps
        return peak * (start + (1.0 - start) * step / spec.warmup_steps)
    if spec.schedule == "constant":
        return peak
    remaining = max(1, spec.total_steps - spec.warmup_steps)
    progress = min(1.0, (step - spec.warmup_steps) / remaining)
    if spec.schedule == "cosine":
        progress = 0.5 * (1.0 - math.cos(math.pi * progress))
    return peak * (1.0 - (1.0 - floor) * progress)

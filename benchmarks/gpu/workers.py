"""The checks of `benchmarks.gpu_workers`, in their order."""

from __future__ import annotations

from benchmarks.gpu import engines, kernels, machine, speed, trainers, transfers

CHECKS = [
    *machine.CHECKS,
    *transfers.CHECKS,
    *kernels.CHECKS,
    *trainers.CHECKS,
    *speed.CHECKS,
    *engines.CHECKS,
]

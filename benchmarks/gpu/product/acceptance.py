"""The checks of `benchmarks.gpu_acceptance`, in their order."""

from __future__ import annotations

from benchmarks.gpu import machine
from benchmarks.gpu.product import recipes, syncs

CHECKS = [machine.CHECKS[0], *recipes.CHECKS, *syncs.CHECKS]

"""The checks of `benchmarks.gpu_acceptance`, in their order."""

from __future__ import annotations

from benchmarks.gpu import machine, recipes, syncs

CHECKS = [machine.CHECKS[0], *recipes.CHECKS, *syncs.CHECKS]

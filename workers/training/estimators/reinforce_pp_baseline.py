"""REINFORCE++ with a baseline per prompt (Hu et al., arXiv 2501.03262), whitened over the batch."""

from __future__ import annotations

from workers.training.estimator import Estimator
from workers.training.estimators.dr_grpo import less_mean

ESTIMATOR = Estimator(of_sequences=less_mean, needs_samples=2)

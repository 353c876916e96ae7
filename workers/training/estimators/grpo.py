"""Group-relative advantages of GRPO (Shao et al., arXiv 2402.03300, section 4.1.2).

The return of a sample less the mean of its prompt's samples, divided by their standard deviation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.training.estimator import Estimator, Sequences

if TYPE_CHECKING:
    from torch import Tensor


def _of_sequences(batch: Sequences) -> Tensor:
    from workers.ops import group_deviations, less_group_mean

    centred = less_group_mean(batch.returns, batch.group)
    return centred / (group_deviations(batch.returns, batch.group) + 1e-6)


ESTIMATOR = Estimator(of_sequences=_of_sequences, needs_samples=2, whitens=False)

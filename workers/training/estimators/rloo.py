"""REINFORCE leave-one-out (Ahmadian et al., arXiv 2402.14740, equation 7).

The baseline of a sample is the mean return of the prompt's other samples; whitening is not part of
the method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.training.estimator import Estimator, Sequences

if TYPE_CHECKING:
    from torch import Tensor


def _of_sequences(batch: Sequences) -> Tensor:
    from workers.ops import less_others_mean

    return less_others_mean(batch.returns, batch.group)


ESTIMATOR = Estimator(of_sequences=_of_sequences, needs_samples=2, whitens=False)

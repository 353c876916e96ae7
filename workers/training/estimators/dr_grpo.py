"""Group-relative advantages without the division by a deviation (Liu et al., arXiv 2503.20783).

The division of GRPO gives prompts whose samples have almost equal rewards the largest weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.training.estimator import Estimator, Sequences

if TYPE_CHECKING:
    from torch import Tensor


def less_mean(batch: Sequences) -> Tensor:
    """(B,) the return of each sequence less the mean of its prompt's."""
    from workers.ops import less_group_mean

    return less_group_mean(batch.returns, batch.group)


ESTIMATOR = Estimator(of_sequences=less_mean, needs_samples=2, whitens=False)

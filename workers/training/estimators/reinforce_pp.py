"""REINFORCE++ (Hu et al., arXiv 2501.03262): the token rewards still to come, whitened.

The baseline is the mean of the whole batch, so one sample per prompt is enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.training.estimator import Estimator, Tokens

if TYPE_CHECKING:
    from torch import Tensor


def _of_tokens(tokens: Tokens) -> tuple[Tensor, None]:
    from workers.ops import gae

    values = tokens.rewards.new_zeros(tokens.rewards.shape)
    advantages, _ = gae(tokens.rewards, values, tokens.mask, tokens.gamma, 1.0)
    return advantages, None


ESTIMATOR = Estimator(of_tokens=_of_tokens)

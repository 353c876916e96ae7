"""Generalised advantage estimates: token rewards against the values of a critic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.training.estimator import Estimator, Tokens

if TYPE_CHECKING:
    from torch import Tensor


def _of_tokens(tokens: Tokens) -> tuple[Tensor, Tensor]:
    from workers.ops import gae  # torch takes a second to import, and the plan does not need it

    assert tokens.values is not None
    return gae(tokens.rewards, tokens.values, tokens.mask, tokens.gamma, tokens.lam)


ESTIMATOR = Estimator(of_tokens=_of_tokens, needs_values=True)

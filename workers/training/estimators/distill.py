"""On-policy distillation: each token's log-ratio to a teacher (Agarwal et al., arXiv 2306.13649).

The student samples, and a frozen teacher, which is the reference model, scores every token. No
reward, no critic, and no later token counts (a discount of 0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.training.estimator import Estimator, Tokens

if TYPE_CHECKING:
    from torch import Tensor


def _of_tokens(tokens: Tokens) -> tuple[Tensor, None]:
    """(B, T) nats, A_t = -(log student - log teacher): the k1 estimate of the reverse KL, negated.

    The gradient of a sequence's KL(student || teacher), every token with its own term alone.
    """
    return -tokens.log_ratio, None


ESTIMATOR = Estimator(of_tokens=_of_tokens, needs_reward=False, needs_teacher=True, whitens=False)

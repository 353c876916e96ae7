"""PPO's clipped surrogate (Schulman et al., arXiv 1707.06347, equation 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.training.policy_loss import PolicyLoss

if TYPE_CHECKING:
    from workers.ops import Clip, ResponseTokens, Surrogate


def _of_tokens(tokens: ResponseTokens, clip: Clip) -> Surrogate:
    from workers.ops import (
        clip_surrogate,  # torch takes a second to import, and the plan does not need it
    )

    return clip_surrogate(tokens, clip)


LOSS = PolicyLoss(_of_tokens)

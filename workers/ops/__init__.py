"""The mathematics of RLHF as pure functions on tensors: only torch, no framework, no ranks.

Axis letters: B sequences, T response tokens, V vocabulary, K completions of one prompt. Every mask
is boolean and True = counts; values at masked positions, even NaN, never affect a result.
"""

from workers.ops.advantages import gae, kl_shaped_rewards
from workers.ops.kl import AdaptiveKLController, KLKind, bounded_log_ratio, kl_estimate
from workers.ops.linear_logprobs import linear_logprobs
from workers.ops.logprobs import entropy, token_logprobs
from workers.ops.losses import (
    pair_accuracy,
    ppo_policy_loss,
    ranking_loss,
    rankings_loss,
    truncated_importance_weights,
    value_loss,
)
from workers.ops.masks import masked_mean, masked_sum, whiten
from workers.ops.stats import PolicyStats, ValueStats, ppo_stats, value_stats

__all__ = [
    "AdaptiveKLController",
    "KLKind",
    "PolicyStats",
    "ValueStats",
    "bounded_log_ratio",
    "entropy",
    "gae",
    "kl_estimate",
    "kl_shaped_rewards",
    "linear_logprobs",
    "masked_mean",
    "masked_sum",
    "pair_accuracy",
    "ppo_policy_loss",
    "ppo_stats",
    "ranking_loss",
    "rankings_loss",
    "token_logprobs",
    "truncated_importance_weights",
    "value_loss",
    "value_stats",
    "whiten",
]

"""The mathematics of RLHF as pure functions on tensors: only torch, no framework, no ranks.

Axis letters: B sequences, T response tokens, V vocabulary, K completions of one prompt. Every mask
is boolean and True = counts; values at masked positions, even NaN, never affect a result.
"""

from workers.ops.advantages import gae, kl_shaped_rewards
from workers.ops.groups import group_deviations, less_group_mean, less_others_mean
from workers.ops.kl import AdaptiveKLController, KLKind, bounded_log_ratio, kl_estimate
from workers.ops.linear_logprobs import linear_logprobs
from workers.ops.logprobs import entropy, token_logprobs
from workers.ops.losses import (
    importance_weights,
    pair_accuracy,
    ppo_policy_loss,
    ranking_loss,
    rankings_loss,
    value_loss,
)
from workers.ops.masks import masked_mean, masked_sum, whiten
from workers.ops.stats import RatioStats, ValueStats, ratio_stats, value_stats
from workers.ops.surrogates import (
    Clip,
    ResponseTokens,
    Surrogate,
    clip_surrogate,
    detached_surrogate,
    sequence_surrogate,
)

__all__ = [
    "AdaptiveKLController",
    "Clip",
    "KLKind",
    "RatioStats",
    "ResponseTokens",
    "Surrogate",
    "ValueStats",
    "bounded_log_ratio",
    "clip_surrogate",
    "detached_surrogate",
    "entropy",
    "gae",
    "group_deviations",
    "importance_weights",
    "kl_estimate",
    "kl_shaped_rewards",
    "less_group_mean",
    "less_others_mean",
    "linear_logprobs",
    "masked_mean",
    "masked_sum",
    "pair_accuracy",
    "ppo_policy_loss",
    "ranking_loss",
    "rankings_loss",
    "ratio_stats",
    "sequence_surrogate",
    "token_logprobs",
    "value_loss",
    "value_stats",
    "whiten",
]

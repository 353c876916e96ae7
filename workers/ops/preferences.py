"""Losses of direct preference optimisation on rankings of K completions.

All pairs of a prompt are one element of the batch, as in the reward model's loss, so each
completion takes one forward pass, and not one per pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from workers.ops.soft_labels import known_pairs

PreferenceKind = Literal["dpo", "ipo", "simpo"]
Pairs = Literal["all", "best_worst", "adjacent"]


@dataclass(frozen=True, slots=True)
class Preference:
    """Which loss, and its constants."""

    loss: PreferenceKind
    beta: float  # scale of the implicit reward; ipo: tau; nats^-1
    margin: float = 0.0  # simpo: gamma, reward units
    label_smoothing: float = 0.0  # probability that a label is flipped, below .5
    robust: bool = False  # unbiased under flips, instead of smoothed
    pairs: Pairs = "all"


def chosen_pairs(ranks: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Indices (better, worse) of the pairs of one prompt that train; ties are no pairs.

    Args:
        ranks: (K,) integers, 1 = best, equal = tie.
        pairs: "all"; "best_worst": every best against every worst; "adjacent": ranks that follow
            each other.
    """
    better, worse = (ranks.unsqueeze(1) < ranks.unsqueeze(0)).nonzero(as_tuple=True)
    if pairs == "best_worst":
        keep = (ranks[better] == ranks.min()) & (ranks[worse] == ranks.max())
    elif pairs == "adjacent":
        above = ranks.unsqueeze(0) > ranks[better].unsqueeze(1)
        keep = ~(above & (ranks.unsqueeze(0) < ranks[worse].unsqueeze(1))).any(1)
    else:
        return better, worse
    return better[keep], worse[keep]


def implicit_rewards(
    policy: Tensor, reference: Tensor | None, lengths: Tensor, preference: Preference
) -> Tensor:
    """(K,) what the loss compares: beta times a log-ratio, or for simpo a mean log-probability.

    Args:
        policy: (K,) nats, summed over each completion, carries the gradient.
        reference: (K,) nats, of the reference model; None for simpo, which has none.
        lengths: (K,) tokens of each completion.
        preference: The loss.

    Raises:
        ValueError: there is no reference, and the loss needs one.
    """
    if preference.loss == "simpo":
        return preference.beta * policy / lengths
    if reference is None:
        raise ValueError(f"the loss {preference.loss} needs the reference's log-probabilities")
    return preference.beta * (policy - reference)


def trained_pairs(
    ranks: Tensor, pairs: Pairs, probabilities: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Indices (better, worse) of the pairs that train, and how probable each order is.

    With probabilities (see `known_pairs`) a pair is (first, second), and with "all" every known
    pair trains, also one of equal ranks; else those of `chosen_pairs` that are known.
    """
    if probabilities is None:
        return *chosen_pairs(ranks, pairs), None
    first, second, p = known_pairs(probabilities)
    if pairs != "all":
        better, worse = chosen_pairs(ranks, pairs)
        wanted = torch.zeros_like(probabilities, dtype=torch.bool)
        wanted[better, worse] = wanted[worse, better] = True
        keep = wanted[first, second]
        first, second, p = first[keep], second[keep], p[keep]
    return first, second, p


def preference_loss(
    rewards: Tensor, ranks: Tensor, preference: Preference, probabilities: Tensor | None = None
) -> Tensor:
    """Mean loss over the pairs of one prompt; 0, with zero gradient, when all completions tie.

    With d the difference of the implicit rewards of a pair and e the label smoothing:

    - dpo: `-(1 - e) log sigmoid(d) - e log sigmoid(-d)` (Rafailov et al., arXiv 2305.18290,
      equation 7; smoothed by Mitchell 2023), or robust `[-(1 - e) log sigmoid(d) + e log
      sigmoid(-d)] / (1 - 2 e)` (Chowdhury et al., arXiv 2403.00409, equation 12).
    - simpo: the same of `d - gamma` (Meng et al., arXiv 2405.14734, equation 6).
    - ipo: `(d / beta - 1 / (2 beta))^2` (Azar et al., arXiv 2310.12036, equation 17), log-ratios
      summed over tokens, as in the paper.

    A pair whose order is right with probability p has the loss `p L(d) + (1 - p) L(-d)`.

    Args:
        rewards: (K,) of `implicit_rewards`.
        ranks: (K,) integers, 1 = best, equal = tie.
        preference: The loss.
        probabilities: (K, K) as in `known_pairs`; None = the ranks are certain.
    """
    better, worse, p = trained_pairs(ranks, preference.pairs, probabilities)
    d = rewards[better] - rewards[worse]
    terms = _terms(d, preference)
    if p is not None:
        terms = p * terms + (1.0 - p) * _terms(-d, preference)
    # Without a pair the sum is 0, but still connected to the graph.
    return terms.sum() / max(len(better), 1)


def _terms(d: Tensor, preference: Preference) -> Tensor:
    """(N,) the loss L(d) of pairs whose order is certain."""
    if preference.loss == "ipo":
        return (d / preference.beta - 1.0 / (2.0 * preference.beta)).square()
    if preference.loss == "simpo":
        d = d - preference.margin
    return _smoothed(d, preference.label_smoothing, robust=preference.robust)


def _smoothed(d: Tensor, smoothing: float, *, robust: bool) -> Tensor:
    right, wrong = -logsigmoid(d), -logsigmoid(-d)
    if robust:
        return ((1.0 - smoothing) * right - smoothing * wrong) / (1.0 - 2.0 * smoothing)
    return (1.0 - smoothing) * right + smoothing * wrong if smoothing else right

"""In which order tasks are shown: where a reward model says least, a person says most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import combinations

Scores = Sequence[float] | Sequence[Sequence[float]]


def uncertainty(scores: Scores) -> float:
    """How unsure a reward model is of the order of K answers, in [0, 1].

    Args:
        scores: K scores of one reward model, or one list of K scores per member of an ensemble.

    Returns:
        For one model `order_entropy`. For an ensemble the mean over pairs of `4 q (1 - q)` with q
        the share of members that prefer the first: 0 = all agree, 1 = half against half.
    """
    if not isinstance(scores[0], Sequence):
        return order_entropy([float(score) for score in scores])  # type: ignore[arg-type]
    members: Sequence[Sequence[float]] = scores  # type: ignore[assignment]
    pairs = list(combinations(range(len(members[0])), 2))
    shares = (
        sum((m[i] > m[j]) + 0.5 * (m[i] == m[j]) for m in members) / len(members) for i, j in pairs
    )
    return sum(4 * q * (1 - q) for q in shares) / len(pairs)


def order_entropy(scores: Sequence[float]) -> float:
    """Entropy of the order of K answers over log K!, its largest value.

    A reward model trained on rankings prefers i to j with probability sigmoid(s_i - s_j); the
    order of all K with that property is drawn best first, each with probability proportional to
    exp(score) among those that are left (R. L. Plackett, "The analysis of permutations", 1975).
    """
    k = len(scores)

    @cache
    def entropy(left: int) -> float:
        """Entropy in nats of the order of a set of answers, given as bits."""
        members = [i for i in range(k) if left >> i & 1]
        if len(members) < 2:
            return 0.0
        top = max(scores[i] for i in members)
        weights = [math.exp(scores[i] - top) for i in members]
        total = sum(weights)
        found = 0.0
        for i, weight in zip(members, weights, strict=True):
            p = weight / total
            if p > 0:
                found += p * (entropy(left & ~(1 << i)) - math.log(p))
        return found

    return entropy((1 << k) - 1) / math.lgamma(k + 1)

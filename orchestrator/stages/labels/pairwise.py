"""From judged pairs of a prompt's answers to probabilities and ranks. Pure arithmetic.

Each pair is asked in both orders, because judges favour a position; the mean of the two is free of
a preference for a position that does not depend on the answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from orchestrator.config.rounds.ai_labels import AskedPairs
from workers.records.arrays import FloatArray

_TIE = 1e-6  # a probability this close to 1/2 prefers neither

Pair = tuple[int, int]


def asked_pairs(count: int, which: AskedPairs) -> list[Pair]:
    """The pairs (first, second) of `count` answers that are asked, each once."""
    if which is AskedPairs.adjacent:
        return list(itertools.pairwise(range(count)))
    return list(itertools.combinations(range(count), 2))


def of_both_orders(forward: float, swapped: float) -> float:
    """Probability that the first answer of a pair is better.

    Args:
        forward: Probability that the answer shown first wins, with the pair's first shown first.
        swapped: The same, with the pair's second shown first.
    """
    return (forward + 1.0 - swapped) / 2.0


def outcome(probability: float) -> float:
    """1 if the first answer is better, 0 if the second is, 1/2 for a tie."""
    return 0.5 if abs(probability - 0.5) < _TIE else float(probability > 0.5)


def matrix(count: int, probabilities: Mapping[Pair, float]) -> FloatArray:
    """(K, K) entry (i, j) is the probability that i is better than j; NaN = not asked."""
    found = np.full((count, count), np.nan, np.float32)
    for (first, second), value in probabilities.items():
        found[first, second], found[second, first] = value, 1.0 - value
    return found


def copeland_scores(count: int, probabilities: Mapping[Pair, float]) -> list[int]:
    """(K,) pairs won less pairs lost (A. H. Copeland 1951); a tie counts for neither."""
    scores = [0] * count
    for (first, second), value in probabilities.items():
        won = round(2 * outcome(value)) - 1
        scores[first] += won
        scores[second] -= won
    return scores


def has_cycle(count: int, probabilities: Mapping[Pair, float]) -> bool:
    """Whether the preferences contradict each other: a over b over c over a, or a longer circle."""
    beats: npt.NDArray[np.bool_] = np.zeros((count, count), np.bool_)
    for (first, second), value in probabilities.items():
        beats[first, second], beats[second, first] = outcome(value) == 1.0, outcome(value) == 0.0
    left = list(range(count))
    while best := [i for i in left if not beats[np.ix_(left, [i])].any()]:
        left = [i for i in left if i not in best]
    return bool(left)


def decided(probabilities: Mapping[Pair, float]) -> dict[Pair, float]:
    """Hard labels of pairs: their outcomes, without ties."""
    found = {pair: outcome(value) for pair, value in probabilities.items()}
    return {pair: value for pair, value in found.items() if value != 0.5}

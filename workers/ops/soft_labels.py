"""Pairs of which a labeler says how probable it is that the first one is better."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


def known_pairs(probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices (first, second) of the pairs that were asked, each once, and their probabilities.

    Args:
        probabilities: (K, K) entry (i, j) is the probability that i is better than j; NaN = not
            asked. Only entries above the diagonal are read.

    Raises:
        ValueError: it is no square matrix.
    """
    if probabilities.ndim != 2 or probabilities.shape[0] != probabilities.shape[1]:
        raise ValueError(f"probabilities {tuple(probabilities.shape)} must be (K, K)")
    first, second = torch.isfinite(probabilities).triu(1).nonzero(as_tuple=True)
    return first, second, probabilities[first, second]


def soft_ranking_loss(scores: Tensor, probabilities: Tensor) -> Tensor:
    """Mean over the known pairs of one prompt of `-(p log sigmoid(d) + (1 - p) log sigmoid(-d))`.

    d is the score of the first less that of the second. The cross-entropy with the probability that
    an AI labeler gave (Bai et al., arXiv 2212.08073, section 4.1; Lee et al., arXiv 2309.00267,
    section 2.1.3). With p of 0 or 1 it is `ranking_loss`; p = 1/2 pulls the scores together.

    Args:
        scores: (K,) reward units, carries the gradient.
        probabilities: as in `known_pairs`.

    Returns:
        Scalar loss, nats per pair; 0, with zero gradient, if no pair is known.

    Raises:
        ValueError: there is no row of probabilities per score.
    """
    if scores.shape != probabilities.shape[:1]:
        raise ValueError(
            f"scores {tuple(scores.shape)} of probabilities {tuple(probabilities.shape)}"
        )
    first, second, p = known_pairs(probabilities)
    d = scores[first] - scores[second]
    terms = p * softplus(-d) + (1.0 - p) * softplus(d)
    return terms.sum() / max(len(first), 1)

"""The maths of over-optimisation: best of n by a proxy, its KL, fitted curves and their intervals.

A proxy reward model is optimised and a gold score is measured; both are drawn over the distance
`d = sqrt(KL)` to the initial policy (Gao, Schulman and Hilton, arXiv 2210.10760). Only numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from orchestrator.results.best_of import best_of_weights

Figures = npt.NDArray[np.float64]
_LEAST = 1e-9  # a determinant or variance below this is none
_MASS = 1e-12  # probability below this is rounding


def shared_weights(rewards: Figures, n: int) -> Figures:
    """(N,) probability that each sample is the best of n of the N; equal rewards share theirs.

    As `best_of_weights`, but where several samples have the same reward, each of them is taken
    equally often, so that no figure depends on the order of sampling.

    Args:
        rewards: (N,) rewards.
        n: 1 <= n <= N.
    """
    _, member, count = np.unique(rewards, return_inverse=True, return_counts=True)
    return (np.bincount(member, best_of_weights(rewards, n)) / count)[member]


def best_of_kl(rewards: Figures, logprobs: Figures, numbers: Sequence[int]) -> Figures:
    """Exact KL of the best of n answers to the policy that samples them, nats, for each n.

    With F the probability that a sample is no better than an answer's reward, and F' that it is
    worse, the best of n has that reward with probability `F^n - F'^n`; answers of equal reward are
    chosen in proportion to their probability. So
    `KL = sum_r (F_r^n - F'_r^n) log((F_r^n - F'_r^n) / (F_r - F'_r))` over the different rewards r.
    It is at most `log n - (n - 1) / n` (Beirami et al., arXiv 2401.01879, theorem 1).

    Args:
        rewards: (M,) of the different answers to one prompt.
        logprobs: (M,) their log-probabilities, nats. What they lack to a sum of 1 is taken for one
            answer that is worse than all.
        numbers: The n.

    Returns:
        One KL per n.
    """
    order, member = np.unique(rewards, return_inverse=True)
    mass = np.bincount(member, np.exp(logprobs), minlength=len(order))
    unseen = max(0.0, 1.0 - float(mass.sum()))
    mass = np.concatenate([[unseen], mass])
    mass = mass / mass.sum()  # probabilities of float32 sum to 1 but for rounding
    above = np.cumsum(mass)
    below = above - mass
    found: list[float] = []
    for n in numbers:
        chosen = above**n - below**n
        counts = (chosen > _MASS**2) & (mass > _MASS)
        found.append(float((chosen[counts] * np.log(chosen[counts] / mass[counts])).sum()))
    return np.maximum(np.array(found), 0.0)


class Form(Enum):
    """The form of a fitted curve R(d), R the gain of the gold score at distance d."""

    best_of_n = "best_of_n"
    """d (alpha - beta d)."""
    policy = "policy"
    """d (alpha - beta log d), of a policy that is trained."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """Curves that were fitted by least squares, one per row of the data."""

    alpha: Figures  # (B,) gain per sqrt(nat) at the start
    beta: Figures  # (B,)
    r2: Figures  # (B,) 1 - residual / total sum of squares; NaN if all gains are equal
    peak: Figures  # (B,) d at which the curve is highest; inf if it never falls


def fit(distances: Figures, gains: Figures, form: Form) -> Fitted:
    """Fit `gains = d (alpha - beta g(d))` with g(d) = d or log d, by least squares.

    Args:
        distances: (B, T) d, at least 0.
        gains: (B, T) gold score above that at d = 0.
        form: Of the curve.

    Returns:
        B fits; alpha, beta and peak are NaN where the distances do not determine them.
    """
    slope = distances**2 if form is Form.best_of_n else distances * _log(distances)
    aa, bb = (distances**2).sum(1), (slope**2).sum(1)
    ab = (distances * slope).sum(1)
    ay, by = (distances * gains).sum(1), (slope * gains).sum(1)
    determinant = aa * bb - ab**2
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        known = determinant > _LEAST * np.maximum(aa * bb, _LEAST)
        alpha = np.where(known, (ay * bb - by * ab) / determinant, np.nan)
        beta = np.where(known, (ay * ab - by * aa) / determinant, np.nan)
        peak = alpha / (2.0 * beta) if form is Form.best_of_n else np.exp(alpha / beta - 1.0)
        peak = np.where(beta > 0, peak, np.where(np.isnan(beta), np.nan, np.inf))
        fitted = alpha[:, None] * distances - beta[:, None] * slope
        total = ((gains - gains.mean(1, keepdims=True)) ** 2).sum(1)
        r2 = np.where(total > _LEAST, 1.0 - ((gains - fitted) ** 2).sum(1) / total, np.nan)
    return Fitted(alpha, beta, r2, np.maximum(peak, 0.0))


def curve(distances: Figures, alpha: float, beta: float, form: Form) -> Figures:
    """(T,) gains of a fitted curve at distances (T,)."""
    return distances * (alpha - beta * (distances if form is Form.best_of_n else _log(distances)))


def _log(distances: Figures) -> Figures:
    """The logarithm; 0 at 0, where it is multiplied by 0."""
    return np.log(np.where(distances > 0, distances, 1.0))


def resampled(items: int, times: int, seed: int) -> Figures:
    """(times, items) weights of bootstrap samples of `items` things; each row sums to 1."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(items, np.full(items, 1.0 / items), size=times) / items


def interval(values: Figures) -> tuple[float, float] | None:
    """The central 95 % of the finite values; None if fewer than half of them are finite."""
    finite = values[np.isfinite(values)]
    if len(finite) < max(2, math.ceil(len(values) / 2)):
        return None
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)


def spearman(a: Figures, b: Figures) -> float:
    """Spearman's rank correlation of (N,) and (N,), equal values at their mean rank.

    NaN if fewer than 3 pairs or all values of one are equal.
    """
    if len(a) < 3:
        return math.nan
    first, second = _ranks(a), _ranks(b)
    first, second = first - first.mean(), second - second.mean()
    size = math.sqrt(float((first**2).sum()) * float((second**2).sum()))
    return float((first * second).sum()) / size if size > _LEAST else math.nan


def _ranks(values: Figures) -> Figures:
    """(N,) ranks from 1, equal values at their mean rank; infinity is the highest."""
    _, member, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2.0)[member]


def line(x: Figures, y: Figures) -> float:
    """Slope of the least-squares line of (N,) y over (N,) x; NaN if all x are equal."""
    centred = x - x.mean()
    size = float((centred**2).sum())
    return float((centred * y).sum()) / size if size > _LEAST else math.nan

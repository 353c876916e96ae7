"""Confidence intervals of win rates and success rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.errors import DataError, NonFiniteError

Z95 = 1.959963984540054  # the .975 quantile of the standard normal


@dataclass(frozen=True, slots=True)
class WinRate:
    """Share of prompts on which the first model is preferred, with a 95 % interval."""

    rate: float
    low: float
    high: float
    n: int  # prompts


@dataclass(frozen=True, slots=True)
class ClusteredRate:
    """Share of successes with a 95 % interval that accounts for clusters of trials."""

    rate: float
    low: float
    high: float
    trials: int
    clusters: int


def _finite(
    name: str, values: Sequence[float] | npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise DataError(f"{name} has shape {array.shape}", fix="hand in at least one number")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise NonFiniteError(
            f"{name}[{bad[0]}] is {array[bad[0]]}", fix="drop failed prompts from both models"
        )
    return array


def preference(outcomes: Sequence[float] | npt.NDArray[np.floating]) -> WinRate:
    """Win rate of per-prompt outcomes and its 95 % score interval, ties counting half.

    The margin d = wins - losses of n prompts is tested against every possible true margin D.
    Under D the variance of d / n is `(2 q + D (1 - D)) / n` with q the most likely rate of losses
    for that margin, given the observed ties (T. Tango, "Equivalence test and confidence
    interval for the difference in proportions for the paired-sample design", Statistics in Medicine
    17, 1998). Without ties this is E. B. Wilson's interval (JASA 22, 1927). It stays inside [0, 1]
    and does not shrink to a point if every prompt is won, or tied.

    Args:
        outcomes: (n,) 1 = the first model is preferred, 0 = the second, 0.5 = tie. A value between
            two of these counts partly as each, which can only widen the interval.

    Raises:
        DataError: there is no outcome, or one is outside [0, 1].
        NonFiniteError: an outcome is NaN or infinite.
    """
    x = _finite("outcomes", outcomes)
    if x.min() < 0 or x.max() > 1:
        raise DataError("an outcome is outside [0, 1]", fix="use 1, 0.5 or 0")
    rate, n = float(x.mean()), len(x)
    wins = float(np.maximum(2 * x - 1, 0).sum())
    losses = float(np.maximum(1 - 2 * x, 0).sum())
    if wins + losses == n:
        return WinRate(rate, *_wilson(rate, n), n)
    high = (1 + _highest_margin(wins, losses, n)) / 2
    low = (1 - _highest_margin(losses, wins, n)) / 2
    return WinRate(rate, min(rate, low), max(rate, high), n)


def _highest_margin(wins: float, losses: float, n: int) -> float:
    """Largest margin D in [-1, 1] that the score test does not reject at 5 %."""
    low, high = (wins - losses) / n, 1.0
    for _ in range(60):  # bisection; at D above d the statistic grows with D
        middle = (low + high) / 2
        if _score_square(wins, losses, n, middle) < Z95**2:
            low = middle
        else:
            high = middle
    return low


def _score_square(wins: float, losses: float, n: int, margin: float) -> float:
    """Squared score statistic of a margin at or above the observed one."""
    linear = (2 * n - wins + losses) * margin - wins - losses
    constant = -losses * margin * (1 - margin)
    lost = (math.sqrt(max(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2 * lost + margin * (1 - margin))
    gap = wins - losses - n * margin
    return gap**2 / variance if variance > 0 else math.inf if gap else 0.0


def _wilson(p: float, n: float) -> tuple[float, float]:
    """Bounds of the Wilson interval of rate `p` in `n` trials; `n` may be fractional."""
    shrink = 1 + Z95**2 / n
    centre = (p + Z95**2 / (2 * n)) / shrink
    half = Z95 / shrink * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    # With p = 0 or 1 one bound is p itself; the min and max correct rounding errors.
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))


def clustered_rate(
    outcomes: Sequence[float] | npt.NDArray[np.floating],
    clusters: Sequence[int] | npt.NDArray[np.integer],
) -> ClusteredRate:
    """Share of successes among clustered trials, with a 95 % interval.

    Trials of one cluster (the pairs of one prompt) are correlated, so they are weaker evidence than
    independent trials. The variance of `p = sum_i c_i / sum_i m_i` over n clusters with c_i
    successes in m_i trials is that of a ratio,
    `n / (n - 1) * sum_i (c_i - p m_i)^2 / (sum_i m_i)^2`; the number of independent trials of the
    same variance, `p (1 - p) / variance`, goes into the Wilson interval (J. N. K. Rao and A. J.
    Scott, "A simple method for the analysis of clustered binary data", Biometrics 48, 1992). It is
    limited to the actual number of trials. If the variance cannot be estimated, with p = 0 or 1 or
    one cluster, each cluster counts as one trial.

    Args:
        outcomes: (N,) 1 = success, 0 = failure, 0.5 = neither.
        clusters: (N,) cluster number of each trial.

    Raises:
        DataError: there is no outcome, or one is outside [0, 1].
        NonFiniteError: an outcome is NaN or infinite.
    """
    x = _finite("outcomes", outcomes)
    if x.min() < 0 or x.max() > 1:
        raise DataError("an outcome is outside [0, 1]", fix="use 1, 0.5 or 0")
    assert len(clusters) == len(x), "one cluster per outcome"
    _, member = np.unique(np.asarray(clusters, np.int64), return_inverse=True)
    trials = np.bincount(member).astype(np.float64)
    successes = np.bincount(member, x)
    n, total, p = len(trials), len(x), float(x.mean())
    spread = float(np.square(successes - p * trials).sum())
    effective = float(n)
    if n > 1 and spread > 0 and 0 < p < 1:
        variance = n / (n - 1) * spread / total**2
        effective = min(float(total), p * (1 - p) / variance)
    return ClusteredRate(p, *_wilson(p, effective), total, n)


def win_rate(
    a: Sequence[float] | npt.NDArray[np.floating], b: Sequence[float] | npt.NDArray[np.floating]
) -> WinRate:
    """How often model a scores above model b on the same prompts; ties count half.

    Args:
        a: (n,) scores of the first model, one per prompt.
        b: (n,) scores of the second model, same prompts in the same order.

    Raises:
        DataError: there is no score, or the numbers of scores differ.
        NonFiniteError: a score is NaN or infinite.
    """
    first, second = _finite("a", a), _finite("b", b)
    if len(first) != len(second):
        raise DataError(
            f"{len(first)} scores against {len(second)}", fix="compare the same prompts"
        )
    return preference(np.where(first == second, 0.5, (first > second).astype(np.float64)))

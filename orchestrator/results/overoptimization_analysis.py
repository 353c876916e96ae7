"""From the measured arrays of proxies and policies to the figures that are reported."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.results.best_of import kl_bound
from orchestrator.results.overoptimization import (
    Estimate,
    Fit,
    OptimisedPolicy,
    Proxy,
    Together,
    Trend,
    finite,
)
from orchestrator.results.proxy_curves import (
    Figures,
    Fitted,
    Form,
    fit,
    interval,
    line,
    resampled,
    spearman,
)

_LEAST_POINTS = 4  # a curve of two coefficients through fewer says nothing of its form
_LEAST_PROXIES = 4  # of a trend


@dataclass(frozen=True, slots=True)
class ProxyCurves:
    """What was measured of a proxy, for P prompts and T numbers n, the first of which is 1."""

    name: str
    rankings: int | None
    parameters: int | None
    gold: Figures  # (P, T)
    kl: Figures  # (P, T) nats
    exact: bool  # whether `kl` is exact; else it is the bound
    reward: Figures  # (P, T) in the proxy's deviations


@dataclass(frozen=True, slots=True)
class PolicyCurve:
    """What was measured of a policy at T points, the first of which is before any update."""

    name: str
    reward_model: str
    kl_coefficient: float
    steps: Sequence[int]
    kl: Figures  # (T,)
    gold: Figures  # (T,)
    reward: Figures  # (T,)


def analyse_proxies(
    curves: Sequence[ProxyCurves], oracle: Figures, numbers: Sequence[int], times: int, seed: int
) -> tuple[tuple[Proxy, ...], tuple[Trend, ...]]:
    """Fits and intervals of each proxy, and how they move with size and data.

    Args:
        curves: Of the proxies, all of the same prompts.
        oracle: (P, T) gold score of the best of n by the gold score.
        numbers: (T,) the n, ascending from 1.
        times: Bootstrap samples of the prompts.
        seed: Of these samples.
    """
    weights = resampled(len(oracle), times, seed)
    fits = [_of_prompts(each, weights, numbers) for each in curves]
    proxies = tuple(
        _proxy(each, fitted, oracle, weights, numbers)
        for each, fitted in zip(curves, fits, strict=True)
    )
    return proxies, _trends(curves, fits, seed)


@dataclass(frozen=True, slots=True)
class _Fits:
    """Fits of all prompts, and of the bootstrap samples of the prompts."""

    whole: Fitted
    samples: Fitted
    exact_whole: Fitted
    exact_samples: Fitted


def _of_prompts(curves: ProxyCurves, weights: Figures, numbers: Sequence[int]) -> _Fits:
    """The paper's distance is the analytic KL of the best of n, which is the same for all."""
    all_prompts = np.full((1, weights.shape[1]), 1.0 / weights.shape[1])
    bound = np.sqrt([kl_bound(n) for n in numbers])
    found: list[Fitted] = []
    for exact in (False, True):
        for each in (all_prompts, weights):
            gold = each @ curves.gold
            distance = np.sqrt(each @ curves.kl) if exact else np.tile(bound, (len(each), 1))
            found.append(fit(distance, gold - gold[:, :1], Form.best_of_n))
    return _Fits(*found)


def _proxy(
    curves: ProxyCurves,
    fits: _Fits,
    oracle: Figures,
    weights: Figures,
    numbers: Sequence[int],
) -> Proxy:
    gold, drawn = curves.gold.mean(0), weights @ curves.gold
    best = drawn.argmax(1)
    gap = (weights @ oracle).max(1) - drawn.max(1)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    enough = len(numbers) >= _LEAST_POINTS
    return Proxy(
        name=curves.name,
        rankings=curves.rankings,
        parameters=curves.parameters,
        kl=_plain(curves.kl.mean(0)),
        gold=_plain(gold),
        gold_low=_plain(low),
        gold_high=_plain(high),
        reward=_plain(curves.reward.mean(0)),
        best=int(numbers[int(gold.argmax())]),
        inside=float(((best > 0) & (best < len(numbers) - 1)).mean()),
        below_oracle=_estimate(float(oracle.mean(0).max() - gold.max()), gap),
        fit=_fit(fits.whole, fits.samples) if enough else None,
        fit_exact=_fit(fits.exact_whole, fits.exact_samples) if enough and curves.exact else None,
    )


def _fit(whole: Fitted, samples: Fitted) -> Fit | None:
    """None if the points do not determine the curve."""
    if not np.isfinite(whole.alpha[0]):
        return None
    return Fit(
        alpha=_estimate(float(whole.alpha[0]), samples.alpha),
        beta=_estimate(float(whole.beta[0]), samples.beta),
        peak=_estimate(float(whole.peak[0]), samples.peak),
        r2=finite(float(whole.r2[0])),
    )


def _estimate(value: float, samples: Figures) -> Estimate:
    found = interval(samples)
    low, high = found or (None, None)
    return Estimate(finite(value), low, high)


def _plain(values: Figures) -> tuple[float, ...]:
    return tuple(values.tolist())


def _trends(curves: Sequence[ProxyCurves], fits: Sequence[_Fits], seed: int) -> tuple[Trend, ...]:
    """Each coefficient over the number of rankings, and over that of parameters.

    Proxies that differ in the other number are left out. An interval is that of bootstrap samples
    of the proxies, each with another bootstrap sample of the prompts.
    """
    found: list[Trend] = []
    for over, other in (("rankings", "parameters"), ("parameters", "rankings")):
        rows = _alike(curves, over, other)
        if len(rows) < _LEAST_PROXIES:
            continue
        sizes = np.log10([float(getattr(curves[i], over)) for i in rows])
        for figure in ("peak", "alpha", "beta"):
            whole = np.array([float(getattr(fits[i].whole, figure)[0]) for i in rows])
            drawn = np.stack([getattr(fits[i].samples, figure) for i in rows])
            found.append(_trend(figure, over, sizes, whole, drawn, seed))
    return tuple(found)


def _alike(curves: Sequence[ProxyCurves], over: str, other: str) -> list[int]:
    """The most proxies that share the `other` number and differ in `over`; [] if none do."""
    known = [i for i, c in enumerate(curves) if getattr(c, over) and getattr(c, other)]
    groups: dict[int, list[int]] = defaultdict(list)
    for i in known:
        groups[getattr(curves[i], other)].append(i)
    kinds = {key: len({getattr(curves[i], over) for i in rows}) for key, rows in groups.items()}
    if not kinds:
        return []
    best = max(kinds, key=lambda key: (kinds[key], len(groups[key])))
    return groups[best] if kinds[best] > 1 else []


def _trend(
    figure: str, over: str, sizes: Figures, whole: Figures, drawn: Figures, seed: int
) -> Trend:
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(sizes), size=(drawn.shape[1], len(sizes)))
    correlations = np.array([_rank(sizes[r], drawn[r, b]) for b, r in enumerate(rows)])
    slopes = np.array([_slope(sizes[r], drawn[r, b]) for b, r in enumerate(rows)])
    return Trend(
        figure=figure,
        over=over,
        proxies=len(sizes),
        correlation=_estimate(_rank(sizes, whole), correlations),
        slope=_estimate(_slope(sizes, whole), slopes),
    )


def _rank(sizes: Figures, figures: Figures) -> float:
    """Rank correlation; a peak that is infinitely far is the farthest."""
    known = ~np.isnan(figures)
    return spearman(sizes[known], figures[known])


def _slope(sizes: Figures, figures: Figures) -> float:
    known = np.isfinite(figures)
    return line(sizes[known], figures[known]) if known.sum() > 1 else np.nan


def analyse_policies(
    curves: Sequence[PolicyCurve], times: int, seed: int
) -> tuple[tuple[OptimisedPolicy, ...], tuple[Together, ...]]:
    """Fits of each policy, and of all policies of a proxy together.

    Intervals are those of bootstrap samples of the points.
    """
    policies = tuple(_policy(each, times, seed) for each in curves)
    counts = Counter(each.reward_model for each in curves)
    together: list[Together] = []
    for reward_model, count in counts.items():
        own = [each for each in curves if each.reward_model == reward_model]
        found = _fit_points(own, times, seed) if count > 1 else None
        if found is not None:
            points = sum(len(each.kl) for each in own)
            together.append(Together(reward_model, count, points, found))
    return policies, tuple(together)


def _policy(curves: PolicyCurve, times: int, seed: int) -> OptimisedPolicy:
    return OptimisedPolicy(
        name=curves.name,
        reward_model=curves.reward_model,
        kl_coefficient=curves.kl_coefficient,
        steps=tuple(curves.steps),
        kl=_plain(curves.kl),
        gold=_plain(curves.gold),
        reward=_plain(curves.reward),
        best=int(curves.gold.argmax()),
        fit=_fit_points([curves], times, seed),
    )


def _fit_points(curves: Sequence[PolicyCurve], times: int, seed: int) -> Fit | None:
    distance = np.sqrt(np.maximum(np.concatenate([each.kl for each in curves]), 0.0))
    gain = np.concatenate([each.gold - each.gold[0] for each in curves])
    if len(distance) < _LEAST_POINTS:
        return None
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(distance), size=(times, len(distance)))
    whole = fit(distance[None], gain[None], Form.policy)
    return _fit(whole, fit(distance[rows], gain[rows], Form.policy))

"""Over-optimisation of proxy reward models, as typed records: what summary.json and pages show."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % bootstrap interval. None = it is not finite, or not known."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Fit:
    """Gain of the gold score as `d (alpha - beta g(d))`, with g(d) = d for the best of n.

    For policies g(d) = log d. d is the square root of the KL in nats.
    """

    alpha: Estimate
    beta: Estimate
    peak: Estimate  # d at which the curve is highest; value None = it never falls
    r2: float | None  # share of the variance explained


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy reward model, and what the best of n answers by it are worth; lists are over n."""

    name: str
    rankings: int | None  # it was trained on; None = not known
    parameters: int | None
    kl: tuple[float, ...]  # nats, to the SFT model
    gold: tuple[float, ...]  # mean gold score
    gold_low: tuple[float, ...]  # its 95 % interval over prompts
    gold_high: tuple[float, ...]
    reward: tuple[float, ...]  # the proxy's own score, in its deviations from its mean
    best: int  # the n whose gold score is highest
    inside: float  # share of bootstrap samples of prompts in which it is neither end
    below_oracle: Estimate  # how much more the best of n by the gold score itself reaches
    fit: Fit | None  # over the square root of the bound of the KL, as in the paper
    fit_exact: Fit | None  # over that of the exact KL


@dataclass(frozen=True, slots=True)
class OptimisedPolicy:
    """One policy that was trained against a proxy; lists are over the points that were measured."""

    name: str
    reward_model: str  # the proxy
    kl_coefficient: float
    steps: tuple[int, ...]  # updates
    kl: tuple[float, ...]  # nats per sequence, to the SFT model
    gold: tuple[float, ...]  # mean gold score of held-out prompts
    reward: tuple[float, ...]  # the proxy's score, in its deviations from the SFT model's mean
    best: int  # the place in these lists whose gold score is highest
    fit: Fit | None


@dataclass(frozen=True, slots=True)
class Together:
    """One curve through the points of all policies of a proxy."""

    reward_model: str
    policies: int
    points: int
    fit: Fit


@dataclass(frozen=True, slots=True)
class Trend:
    """How a figure of the fits moves with the size of the proxies or of their training data."""

    figure: str  # peak | alpha | beta
    over: str  # rankings | parameters
    proxies: int
    correlation: Estimate  # Spearman's
    slope: Estimate  # per factor of 10


@dataclass(frozen=True, slots=True)
class Overoptimization:
    """All measurements of the stage overoptimization."""

    gold: str  # labeler | reward_model
    prompts: int
    samples: int  # per prompt
    distinct: float  # different answers per prompt, mean
    seen: float  # probability of the answers that were sampled, mean over prompts
    exact: bool  # whether `kl` of the proxies is exact; else it is the bound
    numbers: tuple[int, ...]  # n
    bound: tuple[float, ...]  # log n - (n - 1) / n, nats
    oracle: tuple[float, ...]  # gold score of the best of n by the gold score itself
    proxies: tuple[Proxy, ...]
    policies: tuple[OptimisedPolicy, ...]
    together: tuple[Together, ...]
    trends: tuple[Trend, ...]


def consistent(found: Overoptimization) -> Overoptimization:
    """The record, if all of its lists have the lengths that belong together.

    Raises:
        ValueError: they do not.
    """
    wide = {len(each) for each in (found.numbers, found.bound, found.oracle)}
    for proxy in found.proxies:
        lists = (proxy.kl, proxy.gold, proxy.gold_low, proxy.gold_high, proxy.reward)
        wide |= {len(each) for each in lists}
    if len(wide) != 1 or not found.numbers:
        raise ValueError("its lists over n differ in length")
    for policy in found.policies:
        lists = (policy.steps, policy.kl, policy.gold, policy.reward)
        if len({len(each) for each in lists}) != 1 or not 0 <= policy.best < len(policy.steps):
            raise ValueError(f"the lists of {policy.name} differ in length")
    return found


def finite(value: float) -> float | None:
    """The value as JSON can hold it."""
    return float(value) if math.isfinite(value) else None

"""The tables of the stage overoptimization, for the terminal and the page."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.results.overoptimization import (
    Estimate,
    Fit,
    OptimisedPolicy,
    Overoptimization,
)
from orchestrator.results.summary import Summary

_MISSING = "-"
_FIGURES = {
    "peak": "distance of the peak",
    "alpha": "alpha",
    "beta": "beta",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """One table."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


def overoptimization_tables(summary: Summary) -> list[Shown]:
    """The tables; empty without the stage."""
    found = summary.overoptimization
    if found is None:
        return []
    tables = [_curves(found), _kl(found), _proxies(summary, found)]
    tables += [_policies(found)] if found.policies else []
    fitted = any(each.fit for each in (*found.proxies, *found.policies))
    return [*tables, _fits(found)] if fitted else tables


def overoptimization_facts(summary: Summary) -> list[tuple[str, str]]:
    """How the fits move with data and size, as (what, figure)."""
    found = summary.overoptimization
    if found is None:
        return []
    sampled = (
        f"{found.prompts:,} prompts x {found.samples:,} answers, {found.distinct:.0f} different "
        f"per prompt with {found.seen:.0%} of the probability"
    )
    facts = [("over-optimisation", sampled)]
    for trend in found.trends:
        what = f"{_FIGURES.get(trend.figure, trend.figure)} over {trend.over}"
        text = f"rank correlation {estimate(trend.correlation)}, {trend.proxies} proxies"
        slope = f"; {estimate(trend.slope)} per factor of 10"
        facts.append((what, text + slope))
    return facts


def hidden_reward_models(summary: Summary) -> set[str]:
    """Reward models whose held-out accuracy stands in the table of proxies."""
    found = summary.overoptimization
    return {proxy.name for proxy in found.proxies} if found is not None else set()


def estimate(found: Estimate, form: str = "{:.2f}") -> str:
    """A figure with its interval."""
    if found.value is None:
        return _MISSING
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f" [{form.format(found.low)}-{form.format(found.high)}]"
        if found.low < 0:
            interval = f" [{form.format(found.low)} to {form.format(found.high)}]"
    return form.format(found.value) + interval


def _curves(found: Overoptimization) -> Shown:
    rows = [("the gold score", *_cells(found.oracle))]
    rows += [(proxy.name, *_cells(proxy.gold)) for proxy in found.proxies]
    note = "Gold score of the best of n answers, chosen by each proxy or by the gold score itself."
    return Shown(("chosen by", *map(str, found.numbers)), tuple(rows), note)


def _kl(found: Overoptimization) -> Shown:
    rows = [("log n - (n-1)/n", *_cells(found.bound))]
    if found.exact:
        rows += [(proxy.name, *_cells(proxy.kl)) for proxy in found.proxies]
    note = (
        "KL to the SFT model in nats: the bound, and exact, since equal answers are drawn again."
        if found.exact
        else "KL to the SFT model in nats, at most: too little of its probability was sampled."
    )
    return Shown(("KL of the best of", *map(str, found.numbers)), tuple(rows), note)


def _proxies(summary: Summary, found: Overoptimization) -> Shown:
    heads = ("proxy", "rankings", "weights", "right", "best n", "inside", "under gold")
    rows = [
        (
            proxy.name,
            _count(proxy.rankings),
            _short(proxy.parameters),
            _accuracy(summary, proxy.name),
            f"{proxy.best:,}",
            f"{proxy.inside:.0%}",
            estimate(proxy.below_oracle),
        )
        for proxy in found.proxies
    ]
    note = (
        "right: held-out pairs. best n: where the gold score is highest. inside: bootstrap samples "
        "of prompts where that is neither the first nor the last n. under gold: how much more the "
        "best by the gold score itself reaches."
    )
    return Shown(heads, tuple(rows), note)


def _policies(found: Overoptimization) -> Shown:
    heads = ("policy", "proxy", "KL\ncoeff.", "gold:\nfirst", "highest", "at KL", "last", "at KL")
    rows = tuple(map(_policy_cells, found.policies))
    note = "Gold score of held-out answers while PPO learns, and the KL to the SFT model in nats."
    return Shown(heads, rows, note)


def _fits(found: Overoptimization) -> Shown:
    rows = [
        (proxy.name, *_fit_cells(proxy.fit), *_fit_cells(proxy.fit_exact)[-1:])
        for proxy in found.proxies
    ]
    rows += [(policy.name, *_fit_cells(policy.fit), "") for policy in found.policies]
    rows += [
        (f"all {each.policies} of {each.reward_model}", *_fit_cells(each.fit), "")
        for each in found.together
    ]
    note = (
        "Gained gold score, best of n: d (alpha - beta d) with d = sqrt(log n - (n-1)/n) as in the "
        "paper; exact: R2 with d = sqrt(exact KL). PPO: d (alpha - beta log d), d = sqrt(KL)."
    )
    return Shown(("fit", "alpha", "beta", "peak d", "R2", "exact"), tuple(rows), note)


def _policy_cells(policy: OptimisedPolicy) -> tuple[str, ...]:
    at = policy.best
    return (
        policy.name,
        policy.reward_model,
        f"{policy.kl_coefficient:g}",
        _number(policy.gold[0]),
        _number(policy.gold[at]),
        _number(policy.kl[at]),
        _number(policy.gold[-1]),
        _number(policy.kl[-1]),
    )


def _fit_cells(fit: Fit | None) -> tuple[str, ...]:
    if fit is None:
        return (_MISSING,) * 4
    peak = estimate(fit.peak) if fit.peak.value is not None else "none"
    return (_number(fit.alpha.value), _number(fit.beta.value), peak, _number(fit.r2))


def _accuracy(summary: Summary, name: str) -> str:
    figures = summary.reward_models.get(name)
    if name == "reward_model":
        figures = summary.reward_model
    heldout = figures.heldout if figures is not None else None
    return f"{heldout.accuracy:.0%}" if heldout is not None else _MISSING


def _cells(values: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(map(_number, values))


def _number(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.2f}"


def _count(value: int | None) -> str:
    return _MISSING if value is None else f"{value:,}"


def _short(value: int | None) -> str:
    """A number of parameters in three digits."""
    if value is None:
        return _MISSING
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return str(value)

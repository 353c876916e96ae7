"""From measured arrays to figures and intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.results.best_of import kl_bound
from orchestrator.results.overoptimization import consistent
from orchestrator.results.overoptimization_analysis import (
    PolicyCurve,
    ProxyCurves,
    analyse_policies,
    analyse_proxies,
)

NUMBERS = (1, 2, 4, 8, 16, 32, 64)
BOUND = np.array([kl_bound(n) for n in NUMBERS])
RNG = np.random.default_rng(0)


def curves(name: str, rankings: int, beta: float, *, parameters: int = 1000) -> ProxyCurves:
    """A proxy whose prompts follow a known curve with noise, at half the analytic KL."""
    d = np.sqrt(BOUND)
    noise = 0.05 * RNG.normal(size=(80, len(NUMBERS)))
    gold = 1.0 + d * (2.0 - beta * d) + noise - noise[:, :1]
    kl = np.tile(BOUND / 2, (80, 1))
    return ProxyCurves(name, rankings, parameters, gold, kl, True, np.tile(d, (80, 1)))


PROXIES = [curves(f"rm_{n}_{i}", n, beta) for n, beta in ((64, 1.4), (256, 1.0), (1024, 0.7))
           for i in range(3)]  # fmt: skip
ORACLE = np.tile(1.0 + 2.0 * np.sqrt(BOUND), (80, 1))


def test_each_proxy_gets_its_curve_back_with_an_interval_around_it() -> None:
    proxies, _ = analyse_proxies(PROXIES, ORACLE, NUMBERS, 300, seed=1)
    for proxy, beta in zip(proxies, [1.4] * 3 + [1.0] * 3 + [0.7] * 3, strict=True):
        assert proxy.fit is not None
        assert proxy.fit_exact is not None
        assert proxy.fit.beta.value == pytest.approx(beta, abs=0.05)
        assert proxy.fit.alpha.value == pytest.approx(2.0, abs=0.06)
        assert proxy.fit.peak.value == pytest.approx(1.0 / beta, abs=0.03)
        low, high = proxy.fit.beta.low, proxy.fit.beta.high
        assert low is not None
        assert high is not None
        assert low - 0.02 < beta < high + 0.02
        assert 0.0 < high - low < 0.1
        assert (proxy.fit.r2 or 0) > 0.99
        # half the KL: d is smaller by sqrt(2), so beta is twice as large
        assert proxy.fit_exact.beta.value == pytest.approx(2 * beta, abs=0.06)
        assert proxy.best in {1.4: (4,), 1.0: (8,), 0.7: (16, 32)}[beta]
        assert proxy.inside == 1.0
        assert proxy.below_oracle.value == pytest.approx(ORACLE[0, -1] - max(proxy.gold))
        assert all(a <= g <= b for a, g, b in zip(proxy.gold_low, proxy.gold, proxy.gold_high,
                                                  strict=True))  # fmt: skip


def test_the_peak_moves_out_with_the_rankings() -> None:
    _, trends = analyse_proxies(PROXIES, ORACLE, NUMBERS, 300, seed=1)
    assert [(t.figure, t.over) for t in trends] == [
        ("peak", "rankings"), ("alpha", "rankings"), ("beta", "rankings"),
    ]  # fmt: skip
    peak, _, beta = trends
    assert peak.proxies == 9
    assert (peak.correlation.value or 0) > 0.9
    assert (peak.correlation.low or 0) > 0.5
    assert (beta.correlation.value or 0) < -0.9
    # beta falls by .7 over log10(16)
    assert beta.slope.value == pytest.approx(-0.7 / np.log10(16), abs=0.03)
    assert (peak.slope.low or 0) > 0.0


def test_only_proxies_that_differ_in_one_thing_are_compared() -> None:
    small = [curves(f"small_{i}", 1024, 1.1, parameters=10) for i in range(2)]
    _, trends = analyse_proxies([*PROXIES, *small], ORACLE, NUMBERS, 100, seed=1)
    assert {(t.over, t.proxies) for t in trends} == {("rankings", 9), ("parameters", 5)}
    _, none = analyse_proxies(PROXIES[:3], ORACLE, NUMBERS, 100, seed=1)
    assert none == ()
    _, unknown = analyse_proxies(
        [replace(each, rankings=None) for each in PROXIES], ORACLE, NUMBERS, 100, seed=1
    )
    assert unknown == ()


def test_too_few_numbers_get_no_fit_and_an_end_is_not_inside() -> None:
    few = [replace(each, gold=each.gold[:, :3], kl=each.kl[:, :3], reward=each.reward[:, :3])
           for each in PROXIES[6:8]]  # fmt: skip
    proxies, _ = analyse_proxies(few, ORACLE[:, :3], NUMBERS[:3], 100, seed=1)
    assert [(p.fit, p.fit_exact, p.best, p.inside) for p in proxies] == [(None, None, 4, 0.0)] * 2


def arm(name: str, shift: float = 0.0) -> PolicyCurve:
    kl = np.array([0.0, 0.3, 1.0, 2.0, 4.0, 8.0, 14.0, 20.0])
    d = np.sqrt(kl)
    gold = 1.5 + d * (1.0 + shift - 0.6 * np.log(np.where(d > 0, d, 1.0)))
    return PolicyCurve(name, "rm", 0.02, range(0, 16, 2), kl, gold, d)


def test_policies_of_a_proxy_are_fitted_alone_and_together() -> None:
    policies, together = analyse_policies([arm("a"), arm("b")], 200, seed=2)
    for policy in policies:
        assert policy.fit is not None
        assert (policy.fit.alpha.value, policy.fit.beta.value) == pytest.approx((1.0, 0.6))
        assert policy.fit.peak.value == pytest.approx(np.exp(1.0 / 0.6 - 1.0))
        assert policy.fit.r2 == pytest.approx(1.0)
    (both,) = together
    assert (both.reward_model, both.policies, both.points) == ("rm", 2, 16)
    assert both.fit.r2 == pytest.approx(1.0)
    _, apart = analyse_policies([arm("a"), arm("b", shift=0.4)], 200, seed=2)
    assert (apart[0].fit.r2 or 1) < 0.9
    _, alone = analyse_policies([arm("a")], 200, seed=2)
    assert alone == ()


def test_lists_of_different_lengths_are_no_record() -> None:
    from fuzz.empty_figures import MEASURED

    found = MEASURED.overoptimization
    assert found is not None
    assert consistent(found) is found
    with pytest.raises(ValueError, match="lists over n"):
        consistent(replace(found, bound=(0.0,)))
    with pytest.raises(ValueError, match="lists of arm"):
        consistent(replace(found, policies=(replace(found.policies[0], best=4),)))

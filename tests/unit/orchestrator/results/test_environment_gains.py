"""The gain of an environment: a paired difference with an interval."""

from __future__ import annotations

import math

import pytest

from orchestrator.results.environment_gains import Gain, gain


def test_a_difference_by_hand() -> None:
    # 60 right by the first alone, 10 by the second alone, 30 by both, 100 by neither.
    mine = [True] * 60 + [False] * 10 + [True] * 30 + [False] * 100
    others = [False] * 60 + [True] * 10 + [True] * 30 + [False] * 100
    found = gain("ppo", "silent", mine, others)
    assert found.difference == pytest.approx(50 / 200)
    error = 1.96 * math.sqrt((70 - 50**2 / 200) / 200**2)  # Wald's, which Tango's is near
    assert found.low == pytest.approx(0.25 - error, abs=0.02)
    assert found.high == pytest.approx(0.25 + error, abs=0.02)
    assert found.n == 200
    turned = gain("silent", "ppo", others, mine)
    assert (turned.difference, turned.low, turned.high) == pytest.approx(
        (-found.difference, -found.high, -found.low)
    )


def test_equal_answers_are_no_gain() -> None:
    found = gain("a", "b", [True, False] * 20, [True, False] * 20)
    assert found.difference == 0.0
    assert found.low < 0.0 < found.high


def test_it_is_written_and_read() -> None:
    found = Gain("ppo", "silent", 0.25, 0.2, 0.3, 200)
    assert Gain.from_json(found.to_json()) == found

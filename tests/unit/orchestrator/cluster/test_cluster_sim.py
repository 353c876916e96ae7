import argparse

import numpy as np
import pytest

from benchmarks.cluster_sim import measure, steady
from benchmarks.common import medians
from benchmarks.simulated_roles import Clock, Engine, Lengths, Mark, SimBackend, SimRef


def test_calls_one_after_the_other() -> None:
    clock = Clock()
    engine = Engine(clock, continuous=False)
    first, second = engine.add(4.0), engine.add(1.0)
    assert (engine.ready(first), engine.ready(second), engine.ready()) == (4.0, 5.0, 5.0)
    clock.wait_until(4.5)
    assert (first.begin, second.begin, engine.busy) == (0.0, 4.0, 4.5)
    clock.wait_until(9.0)
    assert engine.busy == 5.0
    assert engine.add(1.0).begin == 9.0


def test_calls_that_join_the_batch() -> None:
    clock = Clock()
    engine = Engine(clock, continuous=True)
    first = engine.add(4.0)
    clock.wait_until(0.5)
    second = engine.add(1.0)
    assert (engine.ready(first), engine.ready(second), engine.ready()) == (4.0, 1.5, 4.0)
    clock.wait_until(10.0)
    assert engine.busy == 4.0  # both at the same time
    engine.add(2.0)
    clock.wait_until(11.0)
    assert engine.busy == 5.0


def test_nothing_goes_on_in_a_pause() -> None:
    clock = Clock()
    engine = Engine(clock, continuous=True)
    first, second = engine.add(1.0), engine.add(3.0)
    clock.wait_until(1.0)
    assert engine.ready_for_weights() == 3.0
    engine.pause()
    clock.wait_until(5.0)
    assert engine.ready_for_weights() == 5.0
    assert engine.busy == 1.0
    engine.go_on()
    assert engine.ready(second) == 7.0
    assert (first.interruptions, second.interruptions) == (0, 1)
    clock.wait_until(8.0)
    assert engine.busy == 3.0


def test_the_clock_moves_only_when_somebody_waits() -> None:
    clock = Clock()
    backend = SimBackend(clock, 1, lambda *_: None)
    late, later = SimRef(3.0, "late"), SimRef(5.0, "later")
    assert backend.wait([later, late], 1, 0.0, fetch=True) == []
    assert clock.now == 0.0
    assert backend.wait([later, late], 1, 9.0, fetch=True) == [late]
    assert clock.now == 3.0
    assert backend.wait([SimRef(1.0, "earlier")], 1, 9.0, fetch=True)
    assert clock.now == 3.0


def test_lengths_have_the_median_and_the_tail_that_was_asked_for() -> None:
    found = Lengths(median=200, sigma=0.4, long_share=0.05, long_factor=20).draw(range(20_000))
    assert np.median(found) == pytest.approx(206, abs=8)  # the tail shifts it a little
    assert (found == 4001).mean() == pytest.approx(0.05, abs=0.005)
    assert Lengths().draw([7, 8]).tolist() == [*Lengths().draw([7]), *Lengths().draw([8])]


def test_the_window_holds_whole_bursts_and_neither_end() -> None:
    marks = [Mark(float(n), n, 0.0, 0.0) for n in range(42)]
    first, last = steady(marks, 6)
    assert (first.trained, last.trained) == (7, 35)  # four bursts of seven
    assert steady(marks, 0)[1].trained == 41


def test_medians_are_by_side() -> None:
    assert medians({"a": [3.0, 1.0, 2.0], "b": [5.0]}) == {"a": 2.0, "b": 5.0}


def test_the_real_loop_runs_on_simulated_roles() -> None:
    args = argparse.Namespace(sequences=8, staleness=2, iterations=12)
    calm = measure(args, "synchronous", "serial", 4)
    ahead = measure(args, "in-flight", "continuous", 4)
    assert calm["staleness"] == {"0": 1.0}
    assert max(map(int, ahead["staleness"])) == 2
    assert ahead["sequences_per_second"] > calm["sequences_per_second"]
    assert 0 < ahead["rollout_idle_share"] < calm["rollout_idle_share"]

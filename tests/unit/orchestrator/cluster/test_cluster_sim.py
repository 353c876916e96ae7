import argparse

import numpy as np
import pytest

from benchmarks.cluster_sim import measure, steady
from benchmarks.common import medians
from benchmarks.simulated_roles import Clock, Engines, Lengths, Mark, SimAnswer


def engines(*, continuous: bool) -> tuple[Clock, Engines]:
    clock = Clock()
    return clock, Engines(clock, 2, continuous=continuous)


def test_calls_one_after_the_other() -> None:
    clock, both = engines(continuous=False)
    first, second = both.add(np.array([1.0, 4.0])), both.add(np.array([2.0, 1.0]))
    assert both.ready(first) == 4.0
    assert both.ready(second) == 5.0  # 1 + 2 and 4 + 1
    clock.wait_until(5.0)
    assert both.busy.tolist() == [3.0, 5.0]
    assert first.start.tolist() == [0.0, 0.0]
    assert second.start.tolist() == [1.0, 4.0]


def test_calls_that_join_the_batch() -> None:
    clock, both = engines(continuous=True)
    first = both.add(np.array([1.0, 4.0]))
    clock.wait_until(0.5)
    second = both.add(np.array([2.0, 1.0]))
    assert both.ready(first) == 4.0
    assert both.ready(second) == 2.5
    clock.wait_until(10.0)
    assert both.busy.tolist() == [2.5, 4.0]
    assert second.start.tolist() == [0.5, 0.5]


def test_nothing_goes_on_in_a_pause() -> None:
    clock, both = engines(continuous=True)
    job = both.add(np.array([2.0, 3.0]))
    clock.wait_until(1.0)
    both.paused = True
    clock.wait_until(5.0)
    both.paused = False
    assert both.ready(job) == 7.0
    assert both.busy.tolist() == [1.0, 1.0]


def test_the_clock_moves_only_when_somebody_waits() -> None:
    clock = Clock()
    answer = SimAnswer(clock, lambda: 3.0, lambda: "done")
    assert clock.now == 0.0
    assert answer.result() == "done"
    assert clock.now == 3.0
    assert SimAnswer(clock, lambda: 1.0, lambda: "earlier").result() == "earlier"
    assert clock.now == 3.0


def test_lengths_have_the_median_and_the_tail_that_was_asked_for() -> None:
    found = Lengths(median=200, sigma=0.4, long_share=0.05, long_factor=20).draw(range(20_000))
    assert np.median(found) == pytest.approx(206, abs=8)  # the tail shifts it a little
    assert (found == 4001).mean() == pytest.approx(0.05, abs=0.005)
    assert Lengths().draw([7, 8]).tolist() == Lengths().draw([7, 8]).tolist()


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

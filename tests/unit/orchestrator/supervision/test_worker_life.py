"""The life of a worker, event by event, and what must hold whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.supervision.worker_life import Rules, Status, WorkerLife

RULES = Rules(probe_seconds=10.0, probes_to_condemn=3, max_restarts=2, window_seconds=100.0)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def life(clock: Clock | None = None) -> WorkerLife:
    return WorkerLife("rollout rank 0", RULES, clock or Clock())


def test_three_missed_probes_in_a_row_condemn() -> None:
    worker, seen = life(), []
    for answered in (False, False, True, False, False, False):
        worker.probe_ok(0) if answered else worker.probe_failed(0, "no answer")
        seen.append(worker.status.value)
    assert seen == ["suspect", "suspect", "healthy", "suspect", "suspect", "dead"]
    assert worker.reason == "no answer, 3 times in a row"
    assert not worker.serves


def test_failed_requests_are_counted_apart_and_condemn_nobody() -> None:
    worker = life()
    for _ in range(50):
        worker.request_failed(0)
    assert (worker.status, worker.request_failures, worker.probe_failures) == (
        Status.healthy, 50, 0,
    )  # fmt: skip


def test_a_worker_comes_back_stale_and_serves_once_it_is_current() -> None:
    worker, seen = life(), []
    worker.died(0, "signal 9")
    assert worker.restart()
    for event in (worker.restarted, worker.current):
        seen.append((worker.status.value, worker.serves))
        event(1)
    assert seen == [("restarting", False), ("stale", False)]
    assert (worker.status, worker.serves, worker.incarnation) == (Status.healthy, True, 1)


def test_an_old_process_changes_nothing() -> None:
    worker = life()
    worker.died(0, "signal 9")
    worker.restart()
    worker.restarted(0)
    assert worker.status is Status.restarting
    worker.restarted(1)
    for _ in range(5):
        worker.probe_failed(0, "late answer of the process that was killed")
    worker.died(0, "again")
    worker.current(0)
    assert (worker.status, worker.strays) == (Status.stale, 5)


def test_restarts_are_bounded_within_a_window() -> None:
    clock = Clock()
    worker, came_back = life(clock), []
    for now in (0.0, 50.0, 99.0):
        clock.now = now
        worker.died(worker.incarnation, "signal 9")
        came_back.append(worker.restart())
    assert came_back == [True, True, False]
    assert worker.status is Status.retired
    assert worker.reason == "signal 9; restarted 2 times before"
    other = life(clock := Clock())
    for now in (0.0, 50.0, 101.0, 151.0):  # never three within a hundred seconds
        clock.now = now
        other.died(other.incarnation, "signal 9")
        assert other.restart()


def test_what_is_lost_again_rests_for_twice_as_long_and_a_first_loss_not_at_all() -> None:
    clock = Clock()
    worker, rests = WorkerLife("w", Rules(10.0, 3, 9, 1000.0), clock), []
    for _ in range(8):
        clock.now += 5.0
        worker.died(worker.incarnation, "signal 9")
        lost = clock.now
        while worker.rests:
            clock.now += 0.5
        rests.append(clock.now - lost)
        assert worker.restart()
    assert rests == [0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    clock.now += 1000.0  # the window has moved on
    worker.died(worker.incarnation, "signal 9")
    assert not worker.rests


@given(n=st.integers(1, 10), interval=st.floats(0.1, 100.0))
def test_a_stopped_worker_is_condemned_within_as_many_intervals(n: int, interval: float) -> None:
    rules = Rules(interval, n, 0, 1.0)
    worst = interval + n * rules.answer_seconds  # stopped right after an answer
    assert worst <= max(n, 2) * interval * (1 + 1e-9)


class AnyLife(RuleBasedStateMachine):
    """Any order of events, from the present process and from earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.worker = WorkerLife("w", RULES, self.clock)
        self.was_retired = False
        self.stood: set[int] = {0}  # incarnations that were made current
        self.began: list[float] = []
        self.incarnation = 0

    @rule(seconds=st.floats(0.0, 60.0))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(age=st.integers(0, 1), event=st.sampled_from(["ok", "failed", "request", "died"]))
    def report(self, age: int, event: str) -> None:
        which = self.worker.incarnation - age
        if event == "ok":
            self.worker.probe_ok(which)
        elif event == "failed":
            self.worker.probe_failed(which, "late")
        elif event == "request":
            self.worker.request_failed(which)
        else:
            self.worker.died(which, "signal 9")

    @rule(age=st.integers(0, 1))
    def stands(self, age: int) -> None:
        self.worker.restarted(self.worker.incarnation - age)

    @rule(age=st.integers(0, 1))
    def current(self, age: int) -> None:
        if age == 0 and self.worker.status is Status.stale:
            self.stood.add(self.worker.incarnation)
        self.worker.current(self.worker.incarnation - age)

    @precondition(lambda self: self.worker.status is Status.dead)
    @rule()
    def restart(self) -> None:
        if self.worker.restart():
            self.began.append(self.clock.now)

    @rule(really=st.integers(0, 9))
    def retire(self, really: int) -> None:
        if really == 0:
            self.worker.retire("done")

    @invariant()
    def serves_only_what_was_checked(self) -> None:
        if self.worker.serves:
            assert self.worker.incarnation in self.stood
            assert self.worker.status in (Status.healthy, Status.suspect)

    @invariant()
    def retired_is_final(self) -> None:
        if self.was_retired:
            assert self.worker.status is Status.retired
        self.was_retired = self.worker.status is Status.retired

    @invariant()
    def restarts_are_bounded(self) -> None:
        for end in self.began:
            within = [t for t in self.began if end - RULES.window_seconds < t <= end]
            assert len(within) <= RULES.max_restarts

    @invariant()
    def incarnations_only_grow(self) -> None:
        assert self.worker.incarnation >= self.incarnation
        self.incarnation = self.worker.incarnation


TestAnyLife = AnyLife.TestCase
TestAnyLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_nobody_restarts_who_lives() -> None:
    with pytest.raises(AssertionError, match="is healthy, not dead"):
        life().restart()

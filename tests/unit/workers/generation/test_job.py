"""What leaves an engine when, what is aborted, and what an interrupted call goes on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from countdown import END, Countdown, request

from workers.errors import RoleError
from workers.generation.job import Job
from workers.generation.pool import Pool
from workers.records.generation import Delivery, Finish, GenerationRequest, RolloutBatch, Sampling


def after(steps: int) -> Callable[[], bool]:
    """True from the question after so many steps on; the first is asked before the first step."""
    asked = iter(range(10**6))
    return lambda: next(asked) >= steps


def ids(parts: Sequence[RolloutBatch]) -> list[list[int]]:
    return [part.ids.tolist() for part in parts]


REQUESTS = [request(5, 0), request(2, 10), request(3, 20), request(1, 30)]


class TestParts:
    def test_all_together_stand_in_the_order_of_the_requests(self):
        (batch,) = Pool(Countdown()).run(Job(REQUESTS, Sampling(1.0, 8), Delivery()), 7)
        assert batch.ids.tolist() == [0, 10, 20, 30]
        assert batch.response(0) == [1, 2, 3, 4, END]
        assert batch.response(3) == [END]
        assert (batch.versions == 7).all()
        assert batch.finish.tolist() == [Finish.STOP] * 4

    @pytest.mark.parametrize(
        ("size", "expected"),
        [(1, [[30], [10], [20], [0]]), (2, [[10, 30], [0, 20]]), (3, [[10, 20, 30], [0]])],
    )
    def test_they_leave_as_soon_as_enough_are_there(self, size: int, expected: list[list[int]]):
        parts = Pool(Countdown()).run(Job(REQUESTS, Sampling(1.0, 8), Delivery(size)), 7)
        assert ids(list(parts)) == expected

    def test_the_samples_of_a_prompt_leave_together(self):
        requests = [request(2, 0, samples=3), request(1, 10, samples=2)]
        parts = list(Pool(Countdown()).run(Job(requests, Sampling(1.0, 8), Delivery(1)), 7))
        assert ids(parts) == [[10, 11], [0, 1, 2]]
        assert parts[1].prompt_ids.tolist() == [2, 2, 2]

    def test_the_limit_ends_a_sequence(self):
        (batch,) = Pool(Countdown()).run(Job([request(9, 0)], Sampling(1.0, 4), Delivery()), 7)
        assert (batch.response(0), batch.finish.tolist()) == ([1, 2, 3, 4], [Finish.LENGTH])


class TestEnough:
    def test_the_slowest_are_aborted(self):
        engine = Countdown()
        job = Job(REQUESTS, Sampling(1.0, 8), Delivery(groups=2))
        assert ids(list(Pool(engine).run(job, 7))) == [[10, 30]]
        assert engine.dropped == 2
        assert job.done

    def test_of_a_step_with_too_many_the_first_requests_are_taken(self):
        requests = [request(2, n) for n in range(4)]
        job = Job(requests, Sampling(1.0, 8), Delivery(groups=3))
        assert ids(list(Pool(Countdown()).run(job, 7))) == [[0, 1, 2]]

    def test_parts_count_towards_it(self):
        job = Job(REQUESTS, Sampling(1.0, 8), Delivery(1, groups=3))
        assert ids(list(Pool(Countdown()).run(job, 7))) == [[30], [10], [20]]


class TestInterruption:
    def test_it_goes_on_where_it_was_under_the_new_version(self):
        engine = Countdown()
        job = Job(REQUESTS, Sampling(1.0, 8), Delivery())
        assert list(Pool(engine).run(job, 7, after(2))) == []
        assert not job.done
        (batch,) = Pool(engine).run(job, 8)
        assert job.done
        (whole,) = Pool(Countdown()).run(Job(REQUESTS, Sampling(1.0, 8), Delivery()), 7)
        assert batch.ids.tolist() == whole.ids.tolist()
        assert [batch.response(i) for i in range(4)] == [whole.response(i) for i in range(4)]
        assert batch.logprobs.lengths.tolist() == whole.logprobs.lengths.tolist()
        # Two steps were under version 7: that was enough for requests of two tokens and of one.
        assert batch.versions.tolist() == [[7, 8], [7, 7], [7, 8], [7, 7]]
        assert [s.prompt for s in engine.launched[1]] == [(5, 1, 2), (3, 1, 2)]
        assert [s.max_tokens for s in engine.launched[1]] == [6, 6]

    def test_the_rest_is_drawn_from_another_stream(self):
        engine = Countdown()
        job = Job([request(5, 0, samples=2)], Sampling(1.0, 8), Delivery())
        for steps in (1, 1):
            assert list(Pool(engine).run(job, 7, after(steps))) == []
        list(Pool(engine).run(job, 8))
        seeds = [[s.seed for s in launched] for launched in engine.launched]
        assert seeds[0] == [1000, 1001]
        assert len({seed for each in seeds for seed in each}) == 6
        assert all(0 <= seed < 2**31 for each in seeds for seed in each)

    def test_before_the_first_step_nothing_is_launched(self):
        engine = Countdown()
        job = Job(REQUESTS, Sampling(1.0, 8), Delivery())
        assert list(Pool(engine).run(job, 7, lambda: True)) == []
        assert engine.launched == []
        (batch,) = Pool(engine).run(job, 8)
        assert (batch.versions == 8).all()

    def test_what_has_finished_waits_for_the_rest(self):
        job = Job([request(1, 0), request(2, 1)], Sampling(1.0, 8), Delivery())
        assert list(Pool(Countdown()).run(job, 7, after(2))) == []
        (batch,) = Pool(Countdown()).run(job, 8)
        assert batch.versions.tolist() == [[7, 7], [7, 7]]

    def test_enough_is_counted_over_the_interruption(self):
        job = Job(REQUESTS, Sampling(1.0, 8), Delivery(1, groups=2))
        assert ids(list(Pool(Countdown()).run(job, 7, after(2)))) == [[30]]
        assert ids(list(Pool(Countdown()).run(job, 8))) == [[10]]
        assert job.done


def job(*requests: GenerationRequest, delivery: Delivery | None = None) -> Job:
    return Job(requests, Sampling(1.0, 8), delivery or Delivery())


class TestJoining:
    def test_a_later_job_takes_the_places_that_become_free(self):
        engine = Countdown(room=2)
        pool = Pool(engine)
        first, second = job(request(6, 0), request(1, 1)), job(request(3, 10), request(2, 11))
        (batch,) = pool.run(first, 7, joining=lambda: [second])
        assert (ids([batch]), engine.steps) == ([[0, 1]], 6)
        (batch,) = pool.run(second, 7)
        assert batch.ids.tolist() == [10, 11]
        assert batch.response(0) == [1, 2, END]
        assert (batch.versions == 7).all()
        assert engine.steps == 6  # one after the other they would have been 6 + 3

    def test_what_is_unfinished_stays_in_the_engine_between_two_waits(self):
        engine = Countdown()
        pool = Pool(engine)
        first, second = job(request(1, 0)), job(request(4, 10))
        list(pool.run(first, 7, joining=lambda: [second]))
        assert engine.running
        (batch,) = pool.run(second, 7)
        assert (batch.response(0), engine.steps, engine.dropped) == ([1, 2, 3, END], 4, 0)

    def test_it_may_come_while_the_first_is_under_way(self):
        late = job(request(2, 10))
        asked = iter([[], [], [late], [late], [late]])
        engine = Countdown()
        list(Pool(engine).run(job(request(5, 0)), 7, joining=lambda: next(asked)))
        assert engine.steps == 5
        assert late.enough

    def test_an_interruption_keeps_what_each_has_drawn(self):
        engine = Countdown()
        pool = Pool(engine)
        first, second = job(request(5, 0)), job(request(4, 10))
        assert list(pool.run(first, 7, after(2), joining=lambda: [second])) == []
        assert not engine.running
        (batch,) = pool.run(first, 8, joining=lambda: [second])
        assert batch.versions.tolist() == [[7, 8]]
        (batch,) = pool.run(second, 8)
        assert (batch.response(0), batch.versions.tolist()) == ([1, 2, 3, END], [[7, 8]])

    def test_a_pause_before_its_turn_leaves_nothing_in_the_engine(self):
        engine = Countdown()
        pool = Pool(engine)
        second = job(request(4, 10))
        list(pool.run(job(request(1, 0)), 7, joining=lambda: [second]))
        assert list(pool.run(second, 7, lambda: True)) == []
        assert not engine.running
        (batch,) = pool.run(second, 8)
        assert batch.versions.tolist() == [[7, 8]]

    def test_a_nudge_steps_what_flies(self):
        engine = Countdown()
        pool = Pool(engine)
        second = job(request(3, 10))
        assert not pool.nudge()
        list(pool.run(job(request(1, 0)), 7, joining=lambda: [second]))
        assert [pool.nudge(), pool.nudge(), pool.nudge()] == [True, True, False]
        assert engine.steps == 3
        assert second.enough

    def test_one_with_enough_leaves_its_places(self):
        engine = Countdown()
        second = job(request(1, 10), request(6, 11), delivery=Delivery(groups=1))
        list(Pool(engine).run(job(request(3, 0)), 7, joining=lambda: [second]))
        assert (engine.dropped, engine.running, second.enough) == (1, False, True)

    def test_one_of_its_parts_that_was_ready_leaves_first(self):
        engine = Countdown()
        pool = Pool(engine)
        second = job(request(1, 10), request(2, 11), request(6, 12), delivery=Delivery(1))
        list(pool.run(job(request(4, 0)), 7, joining=lambda: [second]))
        assert ids(list(pool.run(second, 7))) == [[10, 11], [12]]

    def test_an_engine_that_loses_a_sequence_is_an_error(self):
        engine = Countdown()
        run = Pool(engine).run(job(request(4, 0)), 7, lambda: bool(engine.open.clear()))
        with pytest.raises(RoleError, match="lost sequences"):
            list(run)


def test_rows_keep_one_logprob_a_token():
    (batch,) = Pool(Countdown()).run(Job(REQUESTS, Sampling(1.0, 8), Delivery()), 7)
    assert np.array_equal(batch.logprobs.lengths, batch.response_lengths)

"""What leaves an engine when, what is aborted, and what an interrupted call goes on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from workers.generation import Generated, Sample
from workers.generation_job import Job
from workers.messages import Delivery, Finish, GenerationRequest, RolloutBatch, Sampling

END = 0


class Countdown:
    """Draws 1, 2, 3 ... after a prompt of one number n, and ends with the n-th token."""

    def __init__(self) -> None:
        self.launched: list[list[Sample]] = []
        self.landed = 0

    def launch(self, samples: Sequence[Sample], sampling: Sampling) -> CountdownFlight:
        self.launched.append(list(samples))
        return CountdownFlight(self, samples, sampling)


class CountdownFlight:
    def __init__(self, owner: Countdown, samples: Sequence[Sample], sampling: Sampling) -> None:
        self.owner = owner
        self.open = {
            n: (list(s.prompt), len(s.prompt), s.max_tokens or sampling.max_tokens)
            for n, s in enumerate(samples)
        }

    @property
    def running(self) -> bool:
        return bool(self.open)

    def step(self) -> list[tuple[int, Generated]]:
        finished = []
        for n, (tokens, start, limit) in list(self.open.items()):
            token = len(tokens)
            tokens.append(END if token == tokens[0] else token)
            drawn = tokens[start:]
            if tokens[-1] == END or len(drawn) == limit:
                finish = Finish.STOP if tokens[-1] == END else Finish.LENGTH
                finished.append((n, Generated(drawn, [-1.0] * len(drawn), finish)))
                del self.open[n]
        return finished

    def land(self) -> list[tuple[int, Generated]]:
        self.owner.landed += len(self.open)
        found = [
            (n, Generated(tokens[start:], [-1.0] * (len(tokens) - start), Finish.ABORT))
            for n, (tokens, start, _) in self.open.items()
        ]
        self.open = {}
        return found


def request(length: int, first_id: int, samples: int = 1) -> GenerationRequest:
    ids = tuple(range(first_id, first_id + samples))
    return GenerationRequest(length, (length,), ids, tuple(1000 + i for i in ids))


def after(steps: int) -> Callable[[], bool]:
    """True from the question after so many steps on; the first is asked before the first step."""
    asked = iter(range(10**6))
    return lambda: next(asked) >= steps


def never() -> bool:
    return False


def ids(parts: Sequence[RolloutBatch]) -> list[list[int]]:
    return [part.ids.tolist() for part in parts]


REQUESTS = [request(5, 0), request(2, 10), request(3, 20), request(1, 30)]


class TestParts:
    def test_all_together_stand_in_the_order_of_the_requests(self):
        (batch,) = Job(REQUESTS, Sampling(1.0, 8), Delivery()).run(Countdown(), 7, never)
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
        parts = Job(REQUESTS, Sampling(1.0, 8), Delivery(size)).run(Countdown(), 7, never)
        assert ids(list(parts)) == expected

    def test_the_samples_of_a_prompt_leave_together(self):
        requests = [request(2, 0, samples=3), request(1, 10, samples=2)]
        parts = list(Job(requests, Sampling(1.0, 8), Delivery(1)).run(Countdown(), 7, never))
        assert ids(parts) == [[10, 11], [0, 1, 2]]
        assert parts[1].prompt_ids.tolist() == [2, 2, 2]

    def test_the_limit_ends_a_sequence(self):
        (batch,) = Job([request(9, 0)], Sampling(1.0, 4), Delivery()).run(Countdown(), 7, never)
        assert (batch.response(0), batch.finish.tolist()) == ([1, 2, 3, 4], [Finish.LENGTH])


class TestEnough:
    def test_the_slowest_are_aborted(self):
        engine = Countdown()
        job = Job(REQUESTS, Sampling(1.0, 8), Delivery(groups=2))
        assert ids(list(job.run(engine, 7, never))) == [[10, 30]]
        assert engine.landed == 2
        assert job.done

    def test_of_a_step_with_too_many_the_first_requests_are_taken(self):
        requests = [request(2, n) for n in range(4)]
        job = Job(requests, Sampling(1.0, 8), Delivery(groups=3))
        assert ids(list(job.run(Countdown(), 7, never))) == [[0, 1, 2]]

    def test_parts_count_towards_it(self):
        job = Job(REQUESTS, Sampling(1.0, 8), Delivery(1, groups=3))
        assert ids(list(job.run(Countdown(), 7, never))) == [[30], [10], [20]]


class TestInterruption:
    def test_it_goes_on_where_it_was_under_the_new_version(self):
        engine = Countdown()
        job = Job(REQUESTS, Sampling(1.0, 8), Delivery())
        assert list(job.run(engine, 7, after(2))) == []
        assert not job.done
        (batch,) = job.run(engine, 8, never)
        assert job.done
        (whole,) = Job(REQUESTS, Sampling(1.0, 8), Delivery()).run(Countdown(), 7, never)
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
            assert list(job.run(engine, 7, after(steps))) == []
        list(job.run(engine, 8, never))
        seeds = [[s.seed for s in launched] for launched in engine.launched]
        assert seeds[0] == [1000, 1001]
        assert len({seed for each in seeds for seed in each}) == 6
        assert all(0 <= seed < 2**31 for each in seeds for seed in each)

    def test_before_the_first_step_nothing_is_launched(self):
        engine = Countdown()
        job = Job(REQUESTS, Sampling(1.0, 8), Delivery())
        assert list(job.run(engine, 7, lambda: True)) == []
        assert engine.launched == []
        (batch,) = job.run(engine, 8, never)
        assert (batch.versions == 8).all()

    def test_what_has_finished_waits_for_the_rest(self):
        job = Job([request(1, 0), request(2, 1)], Sampling(1.0, 8), Delivery())
        assert list(job.run(Countdown(), 7, after(2))) == []
        (batch,) = job.run(Countdown(), 8, never)
        assert batch.versions.tolist() == [[7, 7], [7, 7]]

    def test_enough_is_counted_over_the_interruption(self):
        job = Job(REQUESTS, Sampling(1.0, 8), Delivery(1, groups=2))
        assert ids(list(job.run(Countdown(), 7, after(2)))) == [[30]]
        assert ids(list(job.run(Countdown(), 8, never))) == [[10]]
        assert job.done


def test_rows_keep_one_logprob_a_token():
    (batch,) = Job(REQUESTS, Sampling(1.0, 8), Delivery()).run(Countdown(), 7, never)
    assert np.array_equal(batch.logprobs.lengths, batch.response_lengths)

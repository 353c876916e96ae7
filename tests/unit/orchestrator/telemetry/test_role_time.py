import threading
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from orchestrator.telemetry.role_time import Account, Ping, RoleSpan, clock_offset, covered, spent
from workers.process.call_timing import CallSpan, Reply, clock_name, fetching, timed, timed_stream


class Hand:
    """A clock that a test moves."""

    def __init__(self, at: float = 0.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def nothing() -> None:
    return None


def test_a_ping_with_equal_ways_gives_the_offset_exactly() -> None:
    # The role's clock shows 100 more; .25 s on each way, 2 s of work.
    ping = Ping(sent=10.0, begin=110.25, end=112.25, received=12.5)
    assert ping.offset == 100.0
    assert ping.delay == 0.5


def test_an_uneven_way_is_wrong_by_half_the_delay_at_most_and_the_least_delayed_ping_counts() -> (
    None
):
    queued = Ping(sent=10.0, begin=113.0, end=114.0, received=14.0)  # 3 s there, none back
    assert queued.offset == 101.5
    assert abs(queued.offset - 100.0) == queued.delay / 2
    quick = Ping(sent=20.0, begin=120.01, end=121.01, received=21.02)
    assert clock_offset([queued, quick]) == pytest.approx(100.0)
    assert clock_offset([quick, queued]) == pytest.approx(100.0)


def test_calls_of_another_machine_are_brought_onto_the_drivers_clock() -> None:
    now = Hand(50.0)
    account = Account(now)
    account.open()
    call = account.sent("policy", 1, 50.0, nothing)
    now.at = 53.0
    account.answered("policy", 1, call, [CallSpan("update", 1050.5, 1052.5, 0.5, "elsewhere")])
    assert account.untold() == [RoleSpan("policy", 1, "update", 50.5, 52.5, 0.5)]
    assert account.untold() == []
    times = account.close()["policy"]
    assert (times.busy, times.transfer, times.waiting) == (1.5, 0.5, 1.0)
    assert times.idle_share == pytest.approx(1 / 3)


def test_the_drivers_own_clock_needs_no_correction_however_late_the_answer() -> None:
    now = Hand(0.0)
    account = Account(now)
    call = account.sent("reward", 0, 0.0, nothing)
    now.at = 9.0
    account.answered("reward", 0, call, [CallSpan("score", 1.0, 2.0, 0.0, clock_name())])
    assert account.untold() == [RoleSpan("reward", 0, "score", 1.0, 2.0, 0.0)]


def test_overlapping_intervals_count_once() -> None:
    assert covered([(1, 3), (2, 4), (6, 7)], (0, 10)) == 4
    assert covered([(1, 9), (2, 3)], (0, 10)) == 8
    assert covered([(-5, 2), (8, 20)], (0, 10)) == 4
    assert covered([], (0, 10)) == 0


def test_a_call_across_the_edge_belongs_to_both_windows_in_parts() -> None:
    span = RoleSpan("critic", 0, "values", 8.0, 12.0, 2.0)
    before, after = spent([span], (0.0, 10.0)), spent([span], (10.0, 20.0))
    assert (before.busy, before.transfer, before.waiting) == (1.0, 1.0, 8.0)
    assert (after.busy, after.transfer, after.waiting) == (1.0, 1.0, 8.0)


def test_a_call_that_runs_on_is_busy_and_one_that_has_answered_unasked_is_not() -> None:
    now, clock = Hand(0.0), clock_name()
    account, answers = Account(now), list[Reply]()
    account.open()
    account.sent("rollout", 0, 2.0, lambda: answers[0] if answers else None)
    now.at = 10.0
    running = account.close()["rollout"]
    assert (running.busy, running.waiting) == (8.0, 2.0)
    answers.append(Reply(None, (CallSpan("generate", 2.0, 13.0, 0.0, clock),)))
    now.at = 20.0
    finished = account.close()["rollout"]  # nobody has waited for it yet
    assert (finished.busy, finished.waiting) == (3.0, 7.0)


def test_an_open_call_behind_another_begins_where_that_one_ended() -> None:
    now, clock = Hand(0.0), clock_name()
    account = Account(now)
    account.open()
    first = account.sent("policy", 0, 1.0, nothing)
    account.sent("policy", 0, 1.5, nothing)
    account.answered("policy", 0, first, [CallSpan("logprobs_of", 2.0, 4.0, 0.0, clock)])
    now.at = 10.0
    times = account.close()["policy"]
    assert (times.busy, times.waiting) == (8.0, 2.0)  # 2 to 4, and 4 to 10


def test_a_role_is_the_mean_of_its_workers() -> None:
    now, clock = Hand(0.0), clock_name()
    account = Account(now)
    account.open()
    for rank, end in ((0, 10.0), (1, 4.0)):
        call = account.sent("policy", rank, 0.0, nothing)
        account.answered("policy", rank, call, [CallSpan("update", 0.0, end, 0.0, clock)])
    now.at = 10.0
    assert account.close()["policy"].busy == 7.0


def test_the_open_call_of_a_lost_worker_ends_with_it_and_its_next_process_counts_from_its_start():
    now, clock = Hand(0.0), clock_name()
    account = Account(now)
    account.open()
    account.sent("rollout", 0, 1.0, nothing)  # never answered
    now.at = 4.0
    account.left("rollout", 0)
    now.at = 10.0
    lost = account.close()["rollout"]  # 0 to 1 waiting, 1 to 4 busy, then no process
    assert (lost.busy, lost.waiting, lost.idle_share) == (3.0, 1.0, 0.25)
    now.at = 12.0
    account.came("rollout", 0)
    call = account.sent("rollout", 0, 12.0, nothing)
    now.at = 20.0
    account.answered("rollout", 0, call, [CallSpan("start", 12.0, 13.0, 0.0, clock)])
    back = account.close()["rollout"]  # exists from 12 on: 1 s of work, 7 of waiting
    assert (back.busy, back.waiting, back.idle_share) == (1.0, 7.0, 0.875)
    now.at = 30.0
    assert account.close()["rollout"].idle_share == 1.0  # nothing of the lost call remains


def test_an_answer_of_a_lost_worker_that_had_come_counts_for_what_it_took() -> None:
    now, clock = Hand(0.0), clock_name()
    account = Account(now)
    account.open()
    reply = Reply(None, (CallSpan("score_shards", 1.0, 3.0, 0.0, clock),))
    account.sent("reward", 0, 1.0, lambda: reply)
    now.at = 8.0
    account.left("reward", 0)
    account.came("reward", 0)
    now.at = 10.0
    times = account.close()["reward"]
    assert (times.busy, times.waiting) == (2.0, 8.0)


def test_a_worker_without_a_process_weighs_nothing_in_the_mean_of_its_role() -> None:
    now = Hand(0.0)
    account = Account(now)
    for rank in (0, 1):
        account.sent("rollout", rank, 0.0, nothing)
    account.open()
    account.left("rollout", 1)
    now.at = 10.0
    times = account.close()["rollout"]
    assert (times.busy, times.waiting, times.idle_share) == (10.0, 0.0, 0.0)
    account.left("rollout", 0)
    now.at = 20.0
    assert account.close() == {}


def test_the_peak_of_a_role_is_the_sum_over_its_workers_of_the_most_since_it_was_asked() -> None:
    account = Account(lambda: 0.0)
    for rank, peaks in ((0, (5, 90, 7)), (1, (11, 3))):
        for peak in peaks:
            account.told("policy", rank, [CallSpan("step", 0.0, 1.0, 0.0, "", peak)])
    account.told("reward", 0, [CallSpan("score", 0.0, 1.0, 0.0, "")])  # it could not measure
    assert account.peaks() == {"policy": 101}
    assert account.peaks() == {}
    account.told("policy", 1, [CallSpan("step", 0.0, 1.0, 0.0, "", 2)])
    assert account.peaks() == {"policy": 2}


def ticking() -> Callable[[], float]:
    numbers = count(1.0)
    return lambda: next(numbers)


def test_a_call_answers_with_its_span_and_of_two_results_with_the_second() -> None:
    reply = timed(lambda: 8, "outer")
    assert isinstance(reply, Reply)
    assert (reply.value, reply.spans[-1].verb) == (8, "outer")
    data, small = timed(lambda: ("data", 7), "two", results=2)
    assert (data, small.value, small.spans[-1].verb) == ("data", 7, "two")


def test_a_stream_replies_with_its_small_records() -> None:
    found = list(timed_stream(iter(["data of a", "a", "data of b", "b"]), "parts"))
    assert [f.value if isinstance(f, Reply) else f for f in found] == [
        "data of a", "a", "data of b", "b",
    ]  # fmt: skip
    assert [isinstance(f, Reply) for f in found] == [False, True, False, True]
    assert {span.verb for span in (*found[1].spans, *found[3].spans)} == {"parts"}
    assert found[1].spans[-1].end <= found[3].spans[-1].begin


def test_a_call_beside_a_stream_tells_what_it_did_so_far_and_nothing_twice() -> None:
    inside, leave = threading.Event(), threading.Event()

    def shards() -> Iterator[str]:
        inside.set()
        assert leave.wait(10)
        yield "large"
        yield "small"

    timed(nothing, "nothing")  # takes along what the tests before have left
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.extend(timed_stream(shards(), "shards")))
    thread.start()
    assert inside.wait(10)
    first, second = timed(nothing, "nothing").spans, timed(nothing, "nothing").spans
    leave.set()
    thread.join()
    assert isinstance(found[1], Reply)
    stream = [s for s in (*first, *second, *found[1].spans) if s.verb == "shards"]
    assert len(stream) == 4  # the last is what it took to yield the small record
    assert [a.end for a in stream[:2]] == [b.begin for b in stream[1:3]]


def test_what_a_stream_did_without_an_answer_travels_with_the_next_call() -> None:
    def shards() -> Iterator[str]:
        yield from ()  # interrupted before anything was finished

    timed(nothing, "nothing")  # takes along what the tests before have left
    assert list(timed_stream(shards(), "shards")) == []
    assert [span.verb for span in timed(nothing, "nothing").spans] == ["shards", "nothing"]


def test_fetching_is_transfer_and_so_are_the_verbs_that_move_weights() -> None:
    now = ticking()

    def update() -> None:  # begins at 1, fetches from 2 to 3, ends at 4
        with fetching(now):
            pass

    span = timed(update, "update", now=now).spans[-1]
    assert (span.begin, span.end, span.transfer) == (1.0, 4.0, 1.0)

    def receive_weights() -> None:
        return None

    span = timed(receive_weights, "receive_weights", now=now).spans[-1]
    assert span.transfer == span.end - span.begin == 1.0


def test_a_verb_that_fails_leaves_the_next_one_its_own_record() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        timed(fail, "fail")
    assert isinstance(timed(nothing, "nothing"), Reply)


def test_calls_of_two_threads_do_not_mix() -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow() -> None:
        inside.set()
        assert leave.wait(10)

    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(timed(slow, "slow")))
    thread.start()
    assert inside.wait(10)
    assert isinstance(timed(nothing, "nothing"), Reply)
    leave.set()
    thread.join()
    assert isinstance(found[0], Reply)

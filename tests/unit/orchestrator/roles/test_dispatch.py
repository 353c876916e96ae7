"""Who serves which request: balanced by tokens, and every sequence accounted for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.roles.dispatch import Dispatch
from orchestrator.roles.generation import Generating
from orchestrator.telemetry.role_time import Account
from workers.errors import LedgerError, RoleError
from workers.process.call_timing import Reply
from workers.records.generation import GenerationRequest, RolloutSummary


def request(n: int, prompt: int = 4, samples: int = 1) -> GenerationRequest:
    ids = tuple(range(100 * n, 100 * n + samples))
    return GenerationRequest(n, (5,) * prompt, ids, ids)


def hands(dispatch: Dispatch, engines: int) -> list[list[int]]:
    found = {hand.rank: dispatch.requests(hand) for hand in dispatch.owed}
    return [[r.prompt_id for r in found.get(rank, [])] for rank in range(engines)]


def owed_by(dispatch: Dispatch, rank: int) -> list[int]:
    return [r.prompt_id for hand in dispatch.owed if hand.rank == rank
            for r in dispatch.requests(hand)]  # fmt: skip


def test_equal_requests_are_dealt_in_turn():
    dispatch = Dispatch([request(n) for n in range(5)], range(2), 10)
    assert hands(dispatch, 2) == [[0, 2, 4], [1, 3]]
    assert [hand.rank for hand in dispatch.owed] == [0, 1]


def test_tokens_balance_and_not_requests():
    # Prompts of 90 and 3 x 30 tokens, responses of 10: 100 against 3 x 40.
    requests = [request(0, 90), request(1, 30), request(2, 30), request(3, 30)]
    assert hands(Dispatch(requests, range(2), 10), 2) == [[0], [1, 2, 3]]
    # Eight samples of a short prompt weigh more than one of a long one: 4 + 80 against 90 + 10.
    requests = [request(0, 4, 8), request(1, 90), request(2, 4), request(3, 4)]
    assert hands(Dispatch(requests, range(2), 10), 2) == [[1], [0, 2, 3]]


def test_the_samples_of_a_prompt_stay_together():
    dispatch = Dispatch([request(n, samples=8) for n in range(4)], range(3), 10)
    assert sorted(len(r.ids) for hand in dispatch.owed for r in dispatch.requests(hand)) == [8] * 4


def test_what_is_unfinished_is_counted_until_no_more_is_wanted():
    dispatch = Dispatch([request(n, samples=2) for n in range(4)], range(2), 10, groups=3)
    assert hands(dispatch, 2) == [[0, 2], [1, 3]]  # one of the first and both of the second
    assert dispatch.unfinished == 8
    dispatch.came_back(0, [0, 1, 200])
    assert dispatch.unfinished == 4  # the rest of the first is surplus
    dispatch.came_back(1, [100])
    assert dispatch.unfinished == 3
    dispatch.deal_again(1, [0])
    assert dispatch.unfinished == 3
    dispatch.came_back(0, [101, 300, 301])
    assert dispatch.unfinished == 0


def test_fewer_requests_than_engines():
    dispatch = Dispatch([request(7)], range(3), 10)
    assert [hand.rank for hand in dispatch.owed] == [0]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=30),
    st.integers(1, 5),
    st.integers(1, 30),
)
def test_every_request_has_one_engine_and_quotas_add_up(
    prompts: list[int], engines: int, groups: int
):
    requests = [request(n, prompt) for n, prompt in enumerate(prompts)]
    groups = min(groups, len(requests))
    dispatch = Dispatch(requests, range(engines), 10, groups)
    dealt = dispatch._hands
    assert sorted(row for hand in dealt for row in hand.rows) == list(range(len(requests)))
    assert sum(hand.quota for hand in dealt) == groups
    assert all(hand.quota <= len(hand.rows) for hand in dealt)
    loads = [sum(prompts[row] + 10 for row in hand.rows) for hand in dealt]
    assert max(loads) - min(loads) <= max(prompts) + 10


def test_what_is_owed_shrinks_as_sequences_come():
    dispatch = Dispatch([request(n, samples=2) for n in range(4)], range(2), 10)
    assert owed_by(dispatch, 0) == [0, 2]
    dispatch.came_back(0, [200, 201, 0])
    assert owed_by(dispatch, 0) == [0]
    dispatch.came_back(0, [1])
    assert owed_by(dispatch, 0) == []
    assert owed_by(dispatch, 1) == [1, 3]


def test_enough_is_all_that_is_owed():
    dispatch = Dispatch([request(n) for n in range(4)], range(2), 10, groups=2)
    dispatch.came_back(1, [300])
    assert owed_by(dispatch, 1) == []
    assert len(owed_by(dispatch, 0)) == 2


def test_what_a_lost_engine_owes_is_dealt_to_the_others_in_runs():
    dispatch = Dispatch([request(n) for n in range(12)], range(3), 10)
    assert hands(dispatch, 3) == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    dispatch.came_back(1, [100])
    dispatch.deal_again(1, [0, 2])
    assert owed_by(dispatch, 1) == []
    assert owed_by(dispatch, 0) == [0, 3, 6, 9, 4]
    assert owed_by(dispatch, 2) == [2, 5, 8, 11, 7, 10]
    assert [hand.call for hand in dispatch.owed] == [-1] * 4
    dispatch.deal_again(0, [2])  # its own and what it had taken over
    assert owed_by(dispatch, 2) == [2, 5, 8, 11, 7, 10, 0, 3, 6, 9, 4]
    with pytest.raises(LedgerError, match="not asked for"):
        dispatch.came_back(0, [0])  # too late: another engine was asked for it
    order = [[900], [400], [700, 1000], [1100]]
    assert sorted(order, key=dispatch.place) == [[900], [400], [700, 1000], [1100]]
    assert [dispatch.place([100 * n]) for n in (0, 9, 1, 10, 2)] == [0, 3, 4, 7, 8]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(2, 5),
       st.integers(1, 30), st.data())  # fmt: skip
def test_whoever_is_lost_when_each_request_is_owed_once_and_enough_stays_enough(
    prompts: list[int], engines: int, groups: int, data: st.DataObject
):
    groups = min(groups, len(prompts))
    requests = [request(n, prompt) for n, prompt in enumerate(prompts)]
    dispatch, alive, back = Dispatch(requests, range(engines), 10, groups), [*range(engines)], 0
    while dispatch.owed:
        hand = data.draw(st.sampled_from(dispatch.owed))
        if len(alive) > 1 and data.draw(st.booleans()):
            alive.remove(hand.rank)
            dispatch.deal_again(hand.rank, alive)
        else:
            dispatch.came_back(hand.rank, dispatch.requests(hand)[0].ids)
            back += 1
        owed = [r.prompt_id for each in dispatch.owed for r in dispatch.requests(each)]
        assert len(set(owed)) == len(owed)
        assert sum(each.wanted for each in dispatch.owed) == groups - back
        assert {each.rank for each in dispatch.owed} <= set(alive)
    assert back == groups


@pytest.mark.parametrize(
    ("rank", "ids", "story"), [(0, [100], "not asked for"), (0, [7], "not asked for"),
                               (0, [0, 0], "came twice")],
)  # fmt: skip
def test_a_sequence_that_nobody_expects(rank: int, ids: list[int], story: str):
    dispatch = Dispatch([request(n) for n in range(4)], range(2), 10)
    with pytest.raises(LedgerError, match=story) as caught:
        dispatch.came_back(rank, ids)
    assert caught.value.where == "rollout rank 0"


class Engines:
    """What arrives of two engines, in this order."""

    def __init__(self, *parts: tuple[int, list[int]]) -> None:
        self._parts = [*parts]

    def next(self) -> tuple[int, RolloutSummary, str] | None:
        if not self._parts:
            return None
        rank, ids = self._parts.pop(0)
        zeros = np.zeros(len(ids), np.int64)
        made = np.zeros((len(ids), 2), np.int64)
        summary = RolloutSummary(np.array(ids), zeros, zeros, zeros, zeros, made, zeros, zeros)
        return rank, Reply(summary, ()), f"{ids}"


def generating(*parts: tuple[int, list[int]], together: bool, groups: int = 0) -> Generating:
    dispatch = Dispatch([request(n) for n in range(4)], range(2), 10, groups)
    engines: Any = Engines(*parts)
    return Generating(dispatch, engines, Account(), together=together)


def test_parts_stand_in_the_order_of_arrival_and_their_sum_in_that_of_the_engines():
    found = generating((1, [300]), (0, [0, 200]), (1, [100]), together=False)
    assert [p.summary.ids.tolist() for p in found.parts()] == [[300], [0, 200], [100]]
    assert [p.summary.ids.tolist() for p in found.parts()] == [[300], [0, 200], [100]]
    assert found.result().summary.ids.tolist() == [0, 200, 100, 300]
    assert found.result().shards == ("[0, 200]", "[100]", "[300]")
    assert found.owed == []


def test_what_shall_come_together_is_one_part():
    found = generating((1, [100, 300]), (0, [0, 200]), together=True)
    (part,) = found.parts()
    assert part.summary.ids.tolist() == [0, 200, 100, 300]


def test_enough_is_not_waited_beyond():
    found = generating((1, [100]), (0, [200]), together=False, groups=2)
    assert found.owed == [0, 1]
    assert [p.summary.ids.tolist() for p in found.parts()] == [[100], [200]]


def test_engines_that_end_too_early_are_named():
    found = generating((1, [100, 300]), (0, [0]), together=False)
    with pytest.raises(RoleError, match="ended before all was there") as caught:
        list(found.parts())
    assert caught.value.where == "rollout rank 0"

"""Who serves which request: balanced by tokens, and every sequence accounted for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.account import Account
from orchestrator.dispatch import Dispatch
from orchestrator.generating import Generating
from workers.errors import LedgerError, RoleError
from workers.messages import GenerationRequest, RolloutSummary
from workers.timing import Reply


def request(n: int, prompt: int = 4, samples: int = 1) -> GenerationRequest:
    ids = tuple(range(100 * n, 100 * n + samples))
    return GenerationRequest(n, (5,) * prompt, ids, ids)


def hands(dispatch: Dispatch, engines: int) -> list[list[int]]:
    return [[r.prompt_id for r in dispatch.hand(rank)] for rank in range(engines)]


def test_equal_requests_are_dealt_in_turn():
    dispatch = Dispatch([request(n) for n in range(5)], range(2), 10)
    assert hands(dispatch, 2) == [[0, 2, 4], [1, 3]]
    assert dispatch.busy == [0, 1]


def test_tokens_balance_and_not_requests():
    # Prompts of 90 and 3 x 30 tokens, responses of 10: 100 against 3 x 40.
    requests = [request(0, 90), request(1, 30), request(2, 30), request(3, 30)]
    assert hands(Dispatch(requests, range(2), 10), 2) == [[0], [1, 2, 3]]
    # Eight samples of a short prompt weigh more than one of a long one: 4 + 80 against 90 + 10.
    requests = [request(0, 4, 8), request(1, 90), request(2, 4), request(3, 4)]
    assert hands(Dispatch(requests, range(2), 10), 2) == [[1], [0, 2, 3]]


def test_the_samples_of_a_prompt_stay_together():
    dispatch = Dispatch([request(n, samples=8) for n in range(4)], range(3), 10)
    assert sorted(len(r.ids) for rank in range(3) for r in dispatch.hand(rank)) == [8] * 4


def test_fewer_requests_than_engines():
    dispatch = Dispatch([request(7)], range(3), 10)
    assert dispatch.busy == [0]


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
    found = [n for hand in hands(dispatch, engines) for n in hand]
    assert sorted(found) == list(range(len(requests)))
    quotas = [dispatch.quota(rank) for rank in range(engines)]
    assert sum(quotas) == groups
    assert all(q <= len(dispatch.hand(rank)) for rank, q in enumerate(quotas))
    loads = [sum(len(r.prompt_tokens) + 10 for r in dispatch.hand(rank)) for rank in range(engines)]
    assert max(loads) - min(loads) <= max(prompts) + 10


def test_what_is_owed_shrinks_as_sequences_come():
    dispatch = Dispatch([request(n, samples=2) for n in range(4)], range(2), 10)
    assert [r.prompt_id for r in dispatch.unfinished(0)] == [0, 2]
    dispatch.came_back(0, [200, 201, 0])
    assert [r.prompt_id for r in dispatch.unfinished(0)] == [0]
    dispatch.came_back(0, [1])
    assert dispatch.unfinished(0) == []
    assert [r.prompt_id for r in dispatch.unfinished(1)] == [1, 3]


def test_enough_is_all_that_is_owed():
    dispatch = Dispatch([request(n) for n in range(4)], range(2), 10, groups=2)
    dispatch.came_back(1, [300])
    assert dispatch.unfinished(1) == []
    assert len(dispatch.unfinished(0)) == 2


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
        summary = RolloutSummary(np.array(ids), zeros, zeros, zeros, zeros, made)
        return rank, Reply(summary, ()), f"{ids}"


def generating(*parts: tuple[int, list[int]], together: bool, groups: int = 0) -> Generating:
    dispatch = Dispatch([request(n) for n in range(4)], range(2), 10, groups)
    engines: Any = Engines(*parts)
    return Generating(0, dispatch, engines, Account(), together=together)


def test_parts_stand_in_the_order_of_arrival_and_their_sum_in_that_of_the_engines():
    found = generating((1, [300]), (0, [0, 200]), (1, [100]), together=False)
    assert [p.summary.ids.tolist() for p in found.parts()] == [[300], [0, 200], [100]]
    assert [p.summary.ids.tolist() for p in found.parts()] == [[300], [0, 200], [100]]
    assert found.result().summary.ids.tolist() == [0, 200, 300, 100]
    assert found.result().shards == ("[0, 200]", "[300]", "[100]")
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

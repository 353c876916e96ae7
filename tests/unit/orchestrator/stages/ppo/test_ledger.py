"""The ledger: every sequence ends exactly once, or the run stops and says which."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.stages.ppo.ledger import Cause, Ledger, LedgerSummary, from_ranges, ranges
from workers.errors import LedgerError


def test_a_closed_step_reports_its_counts_and_the_totals_add_up() -> None:
    ledger = Ledger()
    ledger.generated([1, 2, 3])
    ledger.trained([1, 3])
    ledger.dropped([2], "reward failed")
    assert ledger.check(0) == LedgerSummary(3, 2, {"reward failed": 1}, 0, {Cause.no_reward: 1})
    ledger.generated([4])
    ledger.dropped([4], "aborted", Cause.surplus)
    assert ledger.check(1) == LedgerSummary(1, 0, {"aborted": 1}, 0, {Cause.surplus: 1})
    assert ledger.summary() == LedgerSummary(4, 2, {"reward failed": 1, "aborted": 1})
    assert ledger.summary().dropped_total == 2


def test_a_closed_step_names_the_reason_of_each_of_its_drops_alone() -> None:
    ledger = Ledger()
    ledger.generated([1, 2, 3])
    ledger.dropped([3, 1], "reward failed")
    ledger.dropped([2], "aborted")
    assert ledger.check(0).reasons == {1: "reward failed", 2: "aborted", 3: "reward failed"}
    assert ledger.check(1).reasons == {}
    assert ledger.summary().reasons == {}


def test_a_lost_sequence_is_named_with_its_step() -> None:
    ledger = Ledger()
    ledger.generated([7, 8])
    ledger.trained([8])
    with pytest.raises(LedgerError, match="trained nor dropped: 7") as caught:
        ledger.check(12)
    assert "12" in caught.value.where


def test_no_sequence_lives_or_ends_twice() -> None:
    ledger = Ledger()
    ledger.generated([1])
    with pytest.raises(LedgerError, match="generated twice"):
        ledger.generated([1])
    ledger.trained([1])
    with pytest.raises(LedgerError, match="settled before"):
        ledger.dropped([1], "late")
    with pytest.raises(LedgerError, match="never generated"):
        ledger.trained([2])
    ledger.check(0)
    with pytest.raises(LedgerError, match="generated twice"):
        ledger.generated([1])


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 200), min_size=1), st.integers(0, 3))
def test_a_saved_ledger_goes_on_where_it_stopped(ids: set[int], modulus: int) -> None:
    ledger = Ledger()
    ledger.generated(ids)
    kept = {i for i in ids if modulus == 0 or i % modulus}
    ledger.trained(kept)
    ledger.dropped(ids - kept, "chosen")
    ledger.check(0)
    resumed = Ledger()
    resumed.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
    assert resumed.summary() == ledger.summary()
    assert resumed.state_dict() == ledger.state_dict()
    with pytest.raises(LedgerError, match="generated twice"):
        resumed.generated([min(ids)])
    resumed.generated([201])


def test_ranges_hold_their_first_and_their_last_id() -> None:
    assert ranges([5, 1, 9, 2, 3, 7, 8]) == [[1, 3], [5, 5], [7, 9]]
    assert from_ranges([[1, 3], [5, 5], [7, 9]]) == [1, 2, 3, 5, 7, 8, 9]
    assert ranges([]) == from_ranges([]) == []


def test_state_keeps_ids_as_ranges() -> None:
    ledger = Ledger()
    ledger.generated(range(1000))
    ledger.generated([2000])
    ledger.trained([*range(1000), 2000])
    ledger.check(0)
    assert ledger.state_dict()["ranges"] == [[0, 999], [2000, 2000]]


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(14)))
def test_ids_in_any_order_take_the_room_of_their_gaps(order: list[int]) -> None:
    ledger = Ledger()
    given_so_far: set[int] = set()
    for i in order:
        ledger.generated([i])
        given_so_far.add(i)
        with pytest.raises(LedgerError, match="generated twice"):
            ledger.generated([i])
        kept = ledger.state_dict()["ranges"]
        assert isinstance(kept, list)
        assert [i for first, last in kept for i in range(first, last + 1)] == sorted(given_so_far)
        assert all(after[0] > before[1] + 1 for before, after in pairwise(kept))
    assert ledger.state_dict()["ranges"] == [[0, 13]]

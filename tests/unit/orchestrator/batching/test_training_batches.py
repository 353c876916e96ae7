"""Batching: every id once, level ranks, bounded memory, equal counts, the same every time."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.batching.training_batches import (
    StepPlan,
    critic_steps,
    equal_work,
    micro_batches,
    minibatches,
    pack_documents,
    partition,
    policy_steps,
    ranking_step,
    supervised_step,
)
from workers.errors import BatchArithmeticError, DataError
from workers.records.arrays import IntArray, Ragged
from workers.records.training import Ranking, TokenBatch

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


def _ids(lengths: list[int], start: int = 100) -> tuple[IntArray, IntArray]:
    return np.arange(start, start + len(lengths)), np.asarray(lengths, np.int64)


def _all(parts: list[IntArray]) -> list[int]:
    return sorted(int(i) for part in parts for i in part)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 7))
def test_partition_keeps_every_id_and_levels_tokens(lengths: list[int], ranks: int) -> None:
    ids, tokens = _ids(lengths)
    shares = partition(ids, tokens, ranks)
    assert len(shares) == ranks
    assert _all(shares) == ids.tolist()
    loads = [sum(lengths[i - 100] for i in share) for share in shares]
    # No rank can lead by more than its shortest row, or greedy would have placed that elsewhere.
    for share, load in zip(shares, loads, strict=True):
        if len(share):
            assert load - min(lengths[i - 100] for i in share) <= min(loads)
    assert [s.tolist() for s in partition(ids, tokens, ranks)] == [s.tolist() for s in shares]


def test_partition_of_literals() -> None:
    ids, lengths = _ids([7, 6, 5, 4, 3, 2], start=0)
    assert [s.tolist() for s in partition(ids, lengths, 2)] == [[0, 3, 4], [1, 2, 5]]
    assert [len(s) for s in partition(ids[:2], lengths[:2], 4)] == [1, 1, 0, 0]
    even = partition(*_ids([4, 2, 2, 1], start=0), 2)  # the fourth finds equal loads: fewer rows
    assert [s.tolist() for s in even] == [[0, 3], [1, 2]]


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 120))
def test_micro_batches_respect_the_padded_budget(lengths: list[int], budget: int) -> None:
    ids, tokens = _ids(lengths)
    groups = micro_batches(ids, tokens, budget)
    assert _all(groups) == ids.tolist()
    for group in groups:
        longest = max(lengths[i - 100] for i in group)
        assert len(group) == 1 or len(group) * longest <= budget


def test_micro_batches_of_literals() -> None:
    ids, lengths = _ids([2, 9, 3, 3, 20], start=0)
    # 20 exceeds the budget and goes alone; 9 leaves no room for two rows; the rest costs 3 * 3.
    assert [g.tolist() for g in micro_batches(ids, lengths, 10)] == [[4], [1], [2, 3, 0]]
    with pytest.raises(ValueError, match="token_budget"):
        micro_batches(ids, lengths, 0)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 120))
def test_packed_micro_batches_respect_the_budget_by_their_sum(
    lengths: list[int], ranks: int, budget: int
) -> None:
    works = equal_work(*_ids(lengths), ranks, budget, packed=True)
    assert _all([w.ids for w in works]) == _ids(lengths)[0].tolist()
    assert len({len(w.micro_batches) for w in works}) == 1
    for work in works:
        sums = [sum(lengths[i - 100] for i in group) for group in work.micro_batches if len(group)]
        rows = [len(group) for group in work.micro_batches if len(group)]
        assert all(n == 1 or s <= budget for n, s in zip(rows, sums, strict=True))
        # No two of them could have been one.
        assert all(a + b > budget for i, a in enumerate(sums) for b in sums[:i])


def test_packed_steps_count_sums() -> None:
    ids, lengths = _ids([2, 9, 3, 3, 20], start=0)
    packed = micro_batches(ids, lengths, 10, packed=True)
    assert [g.tolist() for g in packed] == [[4], [1], [2, 3, 0]]
    packed = micro_batches(ids, lengths, 17, packed=True)
    assert [g.tolist() for g in packed] == [[4], [1, 2, 3, 0]]
    plan = StepPlan(1, 17, 5, 1, (0,), packed=True)
    ((step,),) = critic_steps(ids, lengths, lengths, plan)
    assert sorted(len(m) for m in step.work.micro_batches) == [1, 4]
    (text,) = supervised_step(_documents([2, 9, 3, 3]), 1, 17, packed=True)
    assert [len(m) for m in text.micro_batches] == [4]
    # 5 + 3 + 2 + 2 and 2 + 2 are 16 tokens; padded they would be 6 rows of 5.
    rankings = [_ranking(2, [5, 3, 2, 2], [2, 1, 1, 3]), _ranking(3, [2, 2], [2, 1])]
    for packed, groups in ((True, [[2, 3]]), (False, [[2], [3]])):
        (share,) = ranking_step(rankings, 1, 20, packed=packed)
        assert [[r.prompt_id for r in m] for m in share.micro_batches] == groups


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 12))
def test_micro_batches_are_the_fewest_possible(lengths: list[int], budget: int) -> None:
    def fewest(rest: list[int]) -> int:
        if not rest:
            return 0
        first, others = rest[0], rest[1:]
        best = len(rest)
        for choice in range(1 << len(others)):
            group = [first, *(x for i, x in enumerate(others) if choice >> i & 1)]
            if len(group) == 1 or len(group) * max(group) <= budget:
                left = [x for i, x in enumerate(others) if not choice >> i & 1]
                best = min(best, 1 + fewest(left))
        return best

    assert len(micro_batches(*_ids(lengths), budget)) == fewest(lengths)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 120))
def test_every_rank_gets_the_same_number_of_micro_batches(
    lengths: list[int], ranks: int, budget: int
) -> None:
    ids, tokens = _ids(lengths)
    works = equal_work(ids, tokens, ranks, budget)
    assert len(works) == ranks
    assert len({len(w.micro_batches) for w in works}) == 1
    assert _all([w.ids for w in works]) == ids.tolist()


def test_two_ranks_and_three_rows_end_with_one_dummy() -> None:
    ids, lengths = _ids([10, 10, 10], start=0)
    works = equal_work(ids, lengths, ranks=2, token_budget=10)
    assert [[len(m) for m in w.micro_batches] for w in works] == [[1, 1], [1, 0]]


def test_minibatches_are_a_seeded_permutation() -> None:
    ids = np.arange(12) + 7
    steps = minibatches(ids, 4, (0, 1))
    assert [len(s) for s in steps] == [4, 4, 4]
    assert _all(steps) == ids.tolist()
    assert [s.tolist() for s in minibatches(ids, 4, (0, 1))] == [s.tolist() for s in steps]
    assert [s.tolist() for s in minibatches(ids, 4, (1, 0))] != [s.tolist() for s in steps]


def test_minibatches_must_divide_unless_told() -> None:
    with pytest.raises(BatchArithmeticError, match="11 sequences") as caught:
        minibatches(np.arange(11), 4, (0,))
    assert "sequences_per_minibatch" in caught.value.fix
    assert [len(s) for s in minibatches(np.arange(11), 4, (0,), uneven=True)] == [4, 4, 3]
    assert [len(s) for s in minibatches(np.arange(9), 4, (0,), uneven=True)] == [3, 3, 3]
    assert [len(s) for s in minibatches(np.arange(3), 1, (0,))] == [1, 1, 1]


def test_critic_steps_carry_the_global_counts() -> None:
    ids = np.asarray([30, 10, 20, 40])
    responses = np.asarray([3, 1, 2, 4])
    plan = StepPlan(ranks=2, token_budget=8, per_step=2, epochs=3, seed=(5,))
    by_rank = critic_steps(ids, responses, responses + 4, plan)
    assert [len(steps) for steps in by_rank] == [6, 6]
    orders: list[list[int]] = []
    for first, second in zip(*by_rank, strict=True):
        members = _all([first.work.ids, second.work.ids])
        assert first.tokens == second.tokens == sum(i // 10 for i in members)
        assert first.sequences == second.sequences == 2
        assert len(first.work.micro_batches) == len(second.work.micro_batches)
        orders.append(members)
    for epoch in range(3):
        assert sorted(orders[2 * epoch] + orders[2 * epoch + 1]) == [10, 20, 30, 40]
    other = StepPlan(ranks=1, token_budget=99, per_step=2, epochs=3, seed=(5,))
    (alone,) = critic_steps(ids, responses, responses + 4, other)
    assert [sorted(s.work.ids.tolist()) for s in alone] == orders


def test_each_epoch_shuffles_anew() -> None:
    ids, lengths = _ids([1] * 32)
    plan = StepPlan(ranks=1, token_budget=99, per_step=8, epochs=2, seed=(5,))
    (steps,) = critic_steps(ids, lengths, lengths, plan)
    first, second = ([sorted(s.work.ids.tolist()) for s in half] for half in (steps[:4], steps[4:]))
    assert first != second


def _documents(lengths: list[int]) -> TokenBatch:
    tokens = Ragged.from_rows([list(range(n)) for n in lengths], np.int32)
    return TokenBatch(tokens, Ragged(np.ones(len(tokens.values), bool), tokens.offsets))


def test_policy_steps_join_text_to_every_step() -> None:
    ids, lengths = _ids([3, 1, 2, 4])
    plan = StepPlan(ranks=2, token_budget=8, per_step=2, epochs=1, seed=(5,))
    texts = [_documents([4, 6]), _documents([5, 2])]
    by_rank = policy_steps(ids, lengths, lengths, plan, texts)
    assert [[s.ptx.tokens if s.ptx else 0 for s in steps] for steps in by_rank] == [[8, 5], [8, 5]]
    for position, lengths_of_step in ((0, [4, 6]), (1, [2, 5])):
        found: list[int] = []
        for steps in by_rank:
            ptx = steps[position].ptx
            assert ptx is not None
            found += [len(row) for m in ptx.micro_batches for row in m.tokens.rows()]
        assert sorted(found) == lengths_of_step
    (alone,) = policy_steps(ids, lengths, lengths, dataclasses.replace(plan, ranks=1), texts)
    assert [sorted(s.ppo.work.ids.tolist()) for s in alone] == [
        sorted(np.concatenate([steps[n].ppo.work.ids for steps in by_rank]).tolist())
        for n in (0, 1)
    ]
    plain = policy_steps(ids, lengths, lengths, plan)
    assert all(step.ptx is None for steps in plain for step in steps)
    for joined, bare in zip(by_rank, plain, strict=True):
        assert [s.ppo.work.ids.tolist() for s in joined] == [s.ppo.work.ids.tolist() for s in bare]
    with pytest.raises(BatchArithmeticError, match="1 pretraining"):
        policy_steps(ids, lengths, lengths, plan, texts[:1])


def test_an_uneven_batch_must_be_asked_for() -> None:
    ids, lengths = np.arange(5), np.full(5, 3)
    plan = StepPlan(ranks=1, token_budget=99, per_step=2, epochs=1, seed=(5,))
    assert not plan.packed  # nor does anything lie end to end unasked
    with pytest.raises(BatchArithmeticError, match="5 sequences do not divide into steps of 2"):
        critic_steps(ids, lengths, lengths, plan)
    (steps,) = critic_steps(ids, lengths, lengths, dataclasses.replace(plan, uneven=True))
    assert sorted(s.sequences for s in steps) == [1, 2, 2]


def test_supervised_step_shares_rows_and_counts_targets() -> None:
    batch = _documents([2, 3, 4])
    steps = supervised_step(batch, ranks=2, token_budget=4)
    assert {s.tokens for s in steps} == {1 + 2 + 3}  # a first token has no predecessor
    assert [[len(m) for m in s.micro_batches] for s in steps] == [[1, 0], [1, 1]]
    rows = [row.tolist() for s in steps for m in s.micro_batches for row in m.tokens.rows()]
    assert sorted(rows) == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]
    with pytest.raises(DataError, match="target"):
        supervised_step(_documents([1, 1]), ranks=1, token_budget=4)


def _ranking(prompt_id: int, lengths: list[int], ranks: list[int]) -> Ranking:
    rows = Ragged.from_rows([[0] * n for n in lengths], np.int32)
    return Ranking(prompt_id, rows, np.asarray(ranks))


def test_ranking_step_keeps_prompts_whole_and_leaves_ties_out() -> None:
    rankings = [
        _ranking(0, [5, 5], [1, 2]),
        _ranking(1, [4, 4, 4], [1, 1, 1]),
        _ranking(2, [5, 3, 2, 2], [2, 1, 1, 3]),
        _ranking(3, [2, 2], [2, 1]),
    ]
    steps = ranking_step(rankings, ranks=2, token_budget=20)
    assert {s.rankings for s in steps} == {3}
    groups = [[[r.prompt_id for r in m] for m in s.micro_batches] for s in steps]
    assert groups == [[[2]], [[0, 3]]]
    for step in ranking_step(rankings, ranks=1, token_budget=21):
        for group in step.micro_batches:
            rows = sum(len(r.sequences) for r in group)
            longest = max(int(r.sequences.lengths.max()) for r in group)
            assert len(group) == 1 or rows * longest <= 21
    with pytest.raises(DataError, match="none of 1 rankings"):
        ranking_step(rankings[1:2], ranks=1, token_budget=20)


@pytest.mark.parametrize(("packed", "ranks"), [(True, [[1], [0, 2]]), (False, [[0], [1, 2]])])
def test_rankings_are_shared_out_by_what_they_cost(packed: bool, ranks: list[list[int]]) -> None:
    rankings = [
        _ranking(0, [9, 1, 1, 1], [1, 2, 3, 4]),  # 12 tokens, padded 36
        _ranking(1, [9, 9], [1, 2]),  # 18 either way
        _ranking(2, [5, 5], [1, 2]),  # 10 either way
    ]
    steps = ranking_step(rankings, ranks=2, token_budget=100, packed=packed)
    assert [sorted(r.prompt_id for m in s.micro_batches for r in m) for s in steps] == ranks


def test_ranking_step_pads_short_ranks_with_dummies() -> None:
    steps = ranking_step([_ranking(0, [5, 5], [1, 2])], ranks=3, token_budget=1)
    assert [s.micro_batches == ((),) for s in steps] == [False, True, True]


def _texts(*lengths: int) -> TokenBatch:
    rows = [np.arange(10 * i, 10 * i + n) for i, n in enumerate(lengths)]
    return TokenBatch(
        Ragged.from_rows(rows, np.int32),
        Ragged.from_rows([np.ones(n, bool) for n in lengths], np.bool_),
    )


def test_packing_lays_documents_end_to_end() -> None:
    packed = pack_documents(_texts(3, 5, 2, 4), row_tokens=7)
    assert [r.tolist() for r in packed.tokens.rows()] == [
        [10, 11, 12, 13, 14, 20, 21],  # 5 + 2
        [30, 31, 32, 33, 0, 1, 2],  # 4 + 3
    ]
    assert [r.tolist() for r in packed.targets.rows()] == [
        [False, True, True, True, True, False, True],
        [False, True, True, True, False, True, True],
    ]


def test_packing_counts_the_same_targets_and_keeps_long_texts() -> None:
    batch = _texts(9, 1, 4, 4, 2)
    packed = pack_documents(batch, row_tokens=6)
    assert packed.target_count == batch.target_count
    assert sorted(packed.tokens.values.tolist()) == sorted(batch.tokens.values.tolist())
    assert packed.tokens.lengths.tolist() == [9, 6, 5]

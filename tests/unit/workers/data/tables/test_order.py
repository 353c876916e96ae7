from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.data.tables.mixture import BLOCK, Mixture, interleave, quotas
from workers.data.tables.sampler import LengthGroupedSampler, MixedSampler, PermutationSampler
from workers.errors import ConfigError


def test_quotas_by_largest_remainder() -> None:
    # Hare quota 10: shares 4.16, 3.38, 2.46 -> 4, 3, 2 and the one left to the largest remainder
    assert quotas([416, 338, 246], 10).tolist() == [4, 3, 3]
    assert quotas([1, 1, 1], 10).tolist() == [4, 3, 3]
    assert quotas([0.5, 0.3, 0.2]).tolist() == [500, 300, 200]
    assert quotas([3]).tolist() == [BLOCK]


@settings(deadline=None)
@given(st.lists(st.floats(0.2, 20.0), min_size=1, max_size=6))  # each at least a 1000th in all
def test_quotas_are_within_one_of_the_shares(weights: list[float]) -> None:
    found = quotas(weights)
    assert found.sum() == BLOCK
    assert np.all(np.abs(found - np.array(weights) / sum(weights) * BLOCK) < 1 + 1e-6)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_that_are_none(weight: float) -> None:
    with pytest.raises(ConfigError, match="positive"):
        Mixture([1.0, weight], (0,))


def test_a_weight_that_would_never_be_read() -> None:
    with pytest.raises(ConfigError, match="too small"):
        Mixture([1.0, 1e-5], (0,))


def test_every_block_has_the_exact_proportions() -> None:
    mixture = Mixture([5, 3, 2], (1,))
    for block in range(4):
        sets, places = mixture.take(block * BLOCK, BLOCK)
        assert Counter(sets.tolist()) == {0: 500, 1: 300, 2: 200}
        for each, quota in enumerate((500, 300, 200)):
            # each set is read on from where the block before left it
            assert places[sets == each].tolist() == list(range(block * quota, (block + 1) * quota))
    first, second = (mixture.take(b * BLOCK, BLOCK)[0].tolist() for b in (0, 1))
    assert first != second
    assert Mixture([5, 3, 2], (2,)).take(0, BLOCK)[0].tolist() != first


def test_a_mixture_of_one_is_that_one() -> None:
    sets, places = Mixture([0.3], (0,)).take(1990, 20)
    assert not sets.any()
    assert places.tolist() == list(range(1990, 2010))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0.1, 3.0), min_size=1, max_size=4),
    st.lists(st.integers(0, 700), min_size=1, max_size=8),
    st.integers(0, 3000),
)
def test_the_union_of_cursors_is_one_long_read(
    weights: list[float], counts: list[int], start: int
) -> None:
    rows = [np.arange(100 * i, 100 * i + 7 + 13 * i) for i in range(len(weights))]
    seeds = [(5, i) for i in range(len(weights))]

    def grouped() -> LengthGroupedSampler:
        mixed = MixedSampler(rows, weights, seeds, (5,))
        lengths = np.random.default_rng(0).integers(1, 50, 1000)
        return LengthGroupedSampler(mixed, lengths, batch=4, window=5, epoch=0, seed=(5,))

    for fresh in (lambda: MixedSampler(rows, weights, seeds, (5,)), grouped):
        whole = fresh().take(start, sum(counts))
        reader, at, parts = fresh(), start, []
        for count in counts:
            resumed = count % 2  # by a process that knows nothing but the cursor
            parts.append((fresh() if resumed else reader).take(at, count))
            at += count
        assert np.concatenate(parts).tolist() == whole.tolist()


def test_each_set_of_a_mixture_has_its_own_epochs() -> None:
    rows = [np.arange(10), np.arange(100, 103)]
    stream = MixedSampler(rows, [1, 1], [(0, 1), (0, 2)], (0,))
    taken = stream.take(0, 600)
    small, large = taken[taken >= 100], taken[taken < 100]
    for own, size in ((large, 10), (small, 3)):
        epochs = own[: len(own) // size * size].reshape(-1, size)
        assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs.tolist())
    alone = PermutationSampler(10, (0, 1)).take(0, len(large))
    assert large.tolist() == alone.tolist(), "another set changes nothing within this one"


def test_sampler_reads_every_row_once_an_epoch() -> None:
    sampler = PermutationSampler(7, (3,))
    stream = sampler.take(0, 21).reshape(3, 7)
    assert [sorted(epoch) for epoch in stream.tolist()] == [list(range(7))] * 3
    assert len({tuple(epoch) for epoch in stream.tolist()}) == 3, "each epoch has its own order"
    for start in range(0, 21, 4):
        fresh = PermutationSampler(7, (3,)).take(start, 4)
        assert fresh.tolist() == sampler.take(0, 25)[start : start + 4].tolist()
    assert PermutationSampler(7, (4,)).take(0, 7).tolist() != stream[0].tolist()
    assert sampler.take(5, 0).tolist() == []


@pytest.mark.parametrize(("n", "batch", "window"), [(103, 8, 4), (96, 8, 4), (5, 8, 3), (40, 1, 7)])
def test_length_groups_have_every_row_once_an_epoch(n: int, batch: int, window: int) -> None:
    lengths = np.random.default_rng(1).integers(1, 1000, n)
    grouped = LengthGroupedSampler(
        PermutationSampler(n, (2,)), lengths, batch=batch, window=window, epoch=n, seed=(2,)
    )
    epochs = grouped.take(0, 3 * n).reshape(3, n)
    assert [sorted(epoch) for epoch in epochs.tolist()] == [list(range(n))] * 3
    if n > batch:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


def test_length_groups_are_of_one_length_and_in_no_order() -> None:
    n, batch = 1024, 16
    lengths = np.random.default_rng(1).permutation(n) + 1
    plain = PermutationSampler(n, (2,))
    grouped = LengthGroupedSampler(plain, lengths, batch=batch, window=32, epoch=n, seed=(2,))
    batches = lengths[grouped.take(0, 2 * n)].reshape(-1, batch)
    padding = batches.max(axis=1).sum() * batch / batches.sum() - 1
    unsorted = lengths[plain.take(0, 2 * n)].reshape(-1, batch)
    assert padding < 0.04
    assert unsorted.max(axis=1).sum() * batch / unsorted.sum() - 1 > 0.7
    means = batches.mean(axis=1)
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_finite_sets_are_spread_by_weight_until_they_end() -> None:
    sets, rows = interleave([2, 6], [1, 2])
    # times .5 1.5 and .25 .75 1.25 1.75 2.25 2.75
    assert sets.tolist() == [1, 0, 1, 1, 0, 1, 1, 1]
    assert rows.tolist() == [0, 0, 1, 2, 1, 3, 4, 5]
    assert interleave([4], [0.1])[1].tolist() == [0, 1, 2, 3]
    assert interleave([0, 0], [1, 1])[0].tolist() == []

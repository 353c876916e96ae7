"""Experience: matched by id, equal to a plain walk over each row, blind to padding and shards."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.errors import LedgerError, NonFiniteError
from workers.ops import whiten
from workers.records.arrays import Ragged
from workers.records.gather import (
    gather_experience,
    gather_fields,
    gather_rollouts,
    gather_scores,
    told,
)
from workers.records.generation import RolloutBatch
from workers.records.specs import PartSpec, ShapingSpec
from workers.records.training import ExperienceBatch, ExperienceSummary, Scores, TokenField
from workers.training.experience import build_experience
from workers.training.whitening import whitening_moments

SHAPING = ShapingSpec(kl_coefficient=0.1, gamma=1.0, lam=0.95, estimator=PartSpec("gae"))
Parts = tuple[RolloutBatch, TokenField, TokenField, TokenField, Scores]


def _parts(seed: int, lengths: list[int]) -> Parts:
    """Random parts of sequences 100, 101, ... whose responses have the given lengths."""
    rng = np.random.default_rng(seed)
    ids = np.arange(100, 100 + len(lengths))
    prompts = rng.integers(1, 4, len(lengths))
    totals = [int(p) + n for p, n in zip(prompts, lengths, strict=True)]

    def field() -> Ragged:
        return Ragged.from_rows([-rng.random(n) for n in lengths], np.float32)

    rollouts = RolloutBatch(
        ids=ids,
        prompt_ids=ids * 10,
        tokens=Ragged.from_rows([rng.integers(0, 50, n) for n in totals], np.int32),
        prompt_lengths=prompts,
        logprobs=field(),
        finish=np.zeros(len(ids), np.int64),
        versions=np.full((len(ids), 2), 3),
    )
    scores = Scores(ids, rng.normal(size=len(ids)).astype(np.float32), ("",) * len(ids))
    fields = [TokenField(ids, field()) for _ in range(3)]
    return rollouts, fields[0], fields[1], fields[2], scores


def _pick(parts: Parts, rows: list[int]) -> Parts:
    rollouts, old, ref, values, scores = parts
    chosen = [TokenField(f.ids[rows], f.values.select(rows)) for f in (old, ref, values)]
    kept = Scores(scores.ids[rows], scores.values[rows], tuple(scores.failures[r] for r in rows))
    return rollouts.select(rows), chosen[0], chosen[1], chosen[2], kept


def test_literals() -> None:
    ids = np.asarray([5])

    def field(*row: float) -> TokenField:
        return TokenField(ids, Ragged.from_rows([row], np.float32))

    rollouts = RolloutBatch(
        ids, ids, Ragged.from_rows([[9, 8, 7]], np.int32), np.asarray([1]),
        field(-1.0, -1.5).values, np.asarray([0]), np.asarray([[0, 0]]),
    )  # fmt: skip
    batch, summary = build_experience(
        rollouts, field(-1.0, -2.0), field(-2.0, -2.0), field(0.5, 1.0),
        Scores(ids, np.asarray([3.0], np.float32), ("",)), replace(SHAPING, lam=1.0),
    )  # fmt: skip
    # Rewards -.1 and 3; returns 2.9 and 3; advantages 2.4 and 2.
    assert batch.returns.values.tolist() == pytest.approx([2.9, 3.0])
    assert batch.advantages.values.tolist() == pytest.approx([2.4, 2.0])
    assert summary.kl.tolist() == pytest.approx([1.0])
    assert summary.shaped_returns.tolist() == pytest.approx([2.9])
    assert summary.advantage_count == 2
    assert summary.advantage_sum == pytest.approx(4.4)
    assert summary.advantage_square_sum == pytest.approx(2.4**2 + 4.0)
    assert (summary.mismatch_max, summary.mismatch_mean) == pytest.approx((0.5, 0.25))
    # k3 of KL(engine || trainer): exp(-.5) - 1 + .5 on one of two tokens.
    assert summary.mismatch_k3 == pytest.approx((0.6065307 - 0.5) / 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999), st.lists(st.integers(1, 9), min_size=1, max_size=7))
def test_rows_equal_a_plain_walk_over_each_sequence(seed: int, lengths: list[int]) -> None:
    parts = _parts(seed, lengths)
    rollouts, old, ref, values, scores = parts
    batch, summary = build_experience(*parts, SHAPING)
    for i, n in enumerate(lengths):
        gap = old.values.row(i).astype(float) - ref.values.row(i).astype(float)
        rewards = -0.1 * gap
        rewards[-1] += float(scores.values[i])
        v = [*values.values.row(i).astype(float), 0.0]
        # GAE as its definition: a sum of discounted one-step errors.
        errors = [rewards[t] + v[t + 1] - v[t] for t in range(n)]
        advantages = [sum(0.95 ** (s - t) * errors[s] for s in range(t, n)) for t in range(n)]
        assert batch.advantages.row(i).tolist() == pytest.approx(advantages, abs=1e-5)
        assert batch.returns.row(i).tolist() == pytest.approx(np.add(advantages, v[:n]), abs=1e-5)
        assert summary.kl[i] == pytest.approx(gap.sum(), abs=1e-5)
        assert summary.shaped_returns[i] == pytest.approx(rewards.sum(), abs=1e-5)
    assert batch.tokens is rollouts.tokens


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999), st.permutations(range(6)), st.permutations(range(6)))
def test_parts_may_come_in_any_order(seed: int, first: list[int], second: list[int]) -> None:
    parts = _parts(seed, [3, 1, 9, 4, 4, 2])
    straight, _ = build_experience(*parts, SHAPING)
    shuffled, other = _pick(parts, first), _pick(parts, second)
    batch, _ = build_experience(shuffled[0], other[1], shuffled[2], other[3], other[4], SHAPING)
    assert batch.ids.tolist() == [100 + i for i in first]
    for i, row in enumerate(first):
        assert batch.advantages.row(i).tolist() == straight.advantages.row(row).tolist()
        assert batch.old_logprobs.row(i).tolist() == straight.old_logprobs.row(row).tolist()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999), st.integers(0, 6))
def test_sharding_and_padding_change_no_bit(seed: int, cut: int) -> None:
    parts = _parts(seed, [3, 1, 9, 4, 4, 2])
    whole, whole_summary = build_experience(*parts, SHAPING)
    shards: list[ExperienceBatch] = []
    summaries: list[ExperienceSummary] = []
    for rows in (list(range(cut)), list(range(cut, 6))):
        # Each shard gets the whole scores and fields, as the roles send them, and its own rows.
        batch, summary = build_experience(parts[0].select(rows), *parts[1:], SHAPING)
        shards.append(batch)
        summaries.append(summary)
    joined = gather_experience(shards, whole.ids)
    for name in ("advantages", "returns", "values", "old_logprobs", "rollout_logprobs", "tokens"):
        assert getattr(joined, name).values.tolist() == getattr(whole, name).values.tolist()
    assert np.concatenate([s.kl for s in summaries]).tolist() == whole_summary.kl.tolist()
    mean, std = whitening_moments(summaries)
    advantages = torch.from_numpy(whole.advantages.values.copy()).double()
    expected = whiten(advantages, torch.ones_like(advantages, dtype=torch.bool))
    assert torch.allclose((advantages - mean) / std, expected, atol=1e-5)


def test_no_sequences_give_an_empty_batch() -> None:
    batch, summary = build_experience(*_parts(0, []), SHAPING)
    assert len(batch.ids) == len(batch.advantages) == 0
    assert (summary.advantage_count, summary.mismatch_max, summary.mismatch_mean) == (0, 0.0, 0.0)
    with pytest.raises(ValueError, match="no token"):
        whitening_moments([summary])


def test_equal_advantages_have_a_finite_deviation() -> None:
    _, summary = build_experience(*_parts(0, [1]), SHAPING)
    mean, std = whitening_moments([summary])
    assert mean == pytest.approx(summary.advantage_sum)
    assert std > 0


@pytest.mark.parametrize("part", ["old", "ref", "values", "rollout", "scores"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_named_with_its_sequence(part: str, poison: float) -> None:
    rollouts, old, ref, values, scores = _parts(0, [2, 3, 1])
    if part == "scores":
        scores.values[1] = poison
    else:
        rows = {"old": old.values, "ref": ref.values, "values": values.values,
                "rollout": rollouts.logprobs}[part]  # fmt: skip
        rows.row(1)[2] = poison
    with pytest.raises(NonFiniteError, match="sequences 101") as caught:
        build_experience(rollouts, old, ref, values, scores, SHAPING)
    assert part in caught.value.what


def test_a_score_that_is_no_number_is_found_in_every_place() -> None:
    for bad in range(3):
        rollouts, old, ref, values, scores = _parts(0, [2, 3, 1])
        scores.values[bad] = np.inf
        with pytest.raises(NonFiniteError, match=f"sequences 10{bad}") as caught:
            build_experience(rollouts, old, ref, values, scores, SHAPING)
        assert "scores" in caught.value.what


def test_a_failed_reward_elsewhere_is_ignored_but_never_used() -> None:
    rollouts, old, ref, values, scores = _parts(0, [2, 3])
    failed = Scores(scores.ids, np.asarray([1.0, np.nan], np.float32), ("", "timed out"))
    batch, _ = build_experience(rollouts.select([0]), old, ref, values, failed, SHAPING)
    assert batch.ids.tolist() == [100]
    with pytest.raises(AssertionError, match="failed"):
        build_experience(rollouts, old, ref, values, failed, SHAPING)


def test_missing_and_repeated_sequences_are_refused() -> None:
    rollouts, old, _, values, scores = _parts(0, [2, 3])
    short = TokenField(old.ids[:1], old.values.select([0]))
    with pytest.raises(LedgerError, match="no reference log-probabilities for sequences 101"):
        build_experience(rollouts, old, short, values, scores, SHAPING)
    with pytest.raises(LedgerError, match="100 appears twice"):
        gather_fields([old, short], old.ids)


def test_a_failure_is_told_with_the_words_of_the_reward_where_it_said_some() -> None:
    ids, values = np.arange(3), np.full(3, np.nan, np.float32)
    reasons = ("down", "", "no answer")
    scores = Scores(ids, values, reasons, ("KeyError: 3", "", ""))
    assert told(scores) == ["down: KeyError: 3", "no answer"]
    assert told(Scores(ids, values, reasons)) == ["down", "no answer"]


def test_gathering_picks_across_shards_in_the_asked_order() -> None:
    rollouts, old, _, _, scores = _parts(0, [2, 3, 1, 4])
    shards = [rollouts.select([2, 0]), rollouts.select([]), rollouts.select([3, 1])]
    wanted = np.asarray([103, 100, 102])
    got = gather_rollouts(shards, wanted)
    for i, row in enumerate((3, 0, 2)):
        assert got.prompt(i) == rollouts.prompt(row)
        assert got.response(i) == rollouts.response(row)
        assert got.logprobs.row(i).tolist() == rollouts.logprobs.row(row).tolist()
    assert got.prompt_ids.tolist() == [1030, 1000, 1020]
    assert got.versions.tolist() == [[3, 3]] * 3
    assert len(gather_rollouts(shards, wanted[:0])) == 0
    picked = gather_scores([scores], wanted)
    assert picked.values.tolist() == scores.values[[3, 0, 2]].tolist()
    assert gather_fields([old], wanted).values.row(0).tolist() == old.values.row(3).tolist()

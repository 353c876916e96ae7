"""Tokens that an environment said: in the context of what follows, and in nothing that is trained.

The rows below hold two conversations; the engine is the table of `test_trainer_updates`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from unit.workers.roles.test_trainer_updates import ready

from workers.models.padding import pad_rows, response_cells
from workers.ops import gae, kl_shaped_rewards
from workers.records.arrays import Ragged
from workers.records.gather import gather_rollouts
from workers.records.generation import Finish, RolloutBatch, turns_of
from workers.records.specs import PartSpec, PolicyLossSpec, ShapingSpec
from workers.records.training import (
    ExperienceBatch,
    PolicyStep,
    Scores,
    StepWork,
    TokenField,
    Work,
)
from workers.roles.critic import CriticWorker
from workers.roles.policy import PolicyWorker

IDS = np.array([21, 22])
# prompt, turn, | observation |, turn
ROWS = [[1, 4, 2, 5, 6, 0, 3], [3, 0, 1, 4]]
PROMPTS = np.array([1, 1])
SAMPLED = [[True, True, False, False, True, True], [True, False, True]]
COUNTS = [4, 2]
# Tokens after which only observation tokens stand: 2 (before 5), 5 (before 6), and 0 of the second
# row also stands before a sampled token of the first, so it is left out here.
BEFORE_OBSERVATIONS = (2, 5)


def mask() -> Ragged:
    return Ragged.from_rows(SAMPLED, np.bool_)


def numbers(seed: int, low: float, high: float) -> Ragged:
    values = np.random.default_rng(seed).uniform(low, high, sum(COUNTS)).astype(np.float32)
    return Ragged(values, np.cumsum([0, *COUNTS]))


def conversations() -> RolloutBatch:
    return RolloutBatch(
        IDS, np.zeros(2, np.int64), Ragged.from_rows(ROWS, np.int32), PROMPTS,
        numbers(1, -3.0, -1.0), np.full(2, Finish.STOP), np.zeros((2, 2), np.int64),
        mask(), np.array([0.5, -1.0], np.float32),
    )  # fmt: skip


def experience() -> ExperienceBatch:
    return ExperienceBatch(
        IDS, Ragged.from_rows(ROWS, np.int32), PROMPTS, numbers(1, -3.0, -1.0),
        numbers(2, -3.0, -1.0), numbers(3, -1.0, 1.0), numbers(4, -1.0, 1.0), numbers(5, -1.0, 1.0),
        numbers(6, -3.0, -1.0), mask(),
    )  # fmt: skip


def test_lengths_and_turns_are_those_of_the_mask() -> None:
    batch = conversations()
    assert batch.response_lengths.tolist() == [6, 3]
    assert batch.sampled_lengths.tolist() == COUNTS
    assert batch.turns.tolist() == [2, 2]
    assert turns_of(np.array(SAMPLED[0])) == [(0, 2), (4, 6)]
    summary = batch.summary()
    assert (summary.sampled_lengths.tolist(), summary.turns.tolist()) == (COUNTS, [2, 2])


def test_the_mask_travels_with_the_sequences() -> None:
    batch = conversations()
    whole = RolloutBatch.concat([batch.select([1]), batch.select([0])])
    back = gather_rollouts([whole], IDS)
    assert back.sampled is not None
    assert [row.tolist() for row in back.sampled.rows()] == SAMPLED
    assert back.earned is not None
    assert back.earned.tolist() == [0.5, -1.0]
    assert replace(batch, sampled=None).turns.tolist() == [1, 1]


def test_only_sampled_tokens_have_cells() -> None:
    rows = pad_rows(Ragged.from_rows(ROWS, np.int32))
    cells = response_cells(rows, PROMPTS, mask())
    assert rows.labels(cells).tolist() == [4, 2, 0, 3, 0, 4]


def updated(worker: Any, batch: ExperienceBatch, **changes: Any) -> torch.Tensor:
    step = StepWork(Work((IDS,)), sum(COUNTS), 2)
    loss = PolicyLossSpec(
        clip=0.2, temperature=0.7, advantage_mean=0.1, advantage_std=2.0, importance_cap=2.0,
        kl_coefficient=0.3, **changes,
    )  # fmt: skip
    worker.update([PolicyStep(step)], [batch], loss)
    return worker.engine.passes.table.grad


@pytest.mark.parametrize("policy_loss", ["clip", "gspo", "cispo"])
@pytest.mark.parametrize("aggregate", ["tokens", "sequences", "constant"])
def test_the_logits_of_observations_have_no_gradient(policy_loss: str, aggregate: Any) -> None:
    part = PartSpec(policy_loss)
    grad = updated(ready(PolicyWorker(0)), experience(), policy_loss=part, aggregate=aggregate)
    for token in BEFORE_OBSERVATIONS:
        assert grad[token].tolist() == [0.0] * grad.shape[1]
    for token in (1, 4, 6, 3):  # before sampled tokens
        assert float(grad[token].abs().max()) > 0.0


def test_the_same_tokens_without_a_mask_would_have_one() -> None:
    flat = Ragged.from_rows([[0.1] * 6, [0.1] * 3], np.float32)
    fields = dict.fromkeys(
        ("rollout_logprobs", "old_logprobs", "advantages", "returns", "values", "ref_logprobs"),
        flat,
    )
    grad = updated(ready(PolicyWorker(0)), replace(experience(), sampled=None, **fields))
    assert all(float(grad[token].abs().max()) > 0.0 for token in BEFORE_OBSERVATIONS)


def test_the_values_before_observations_are_not_fitted() -> None:
    worker = ready(CriticWorker(0))
    worker.update([StepWork(Work((IDS,)), sum(COUNTS), 2)], [experience()], 10.0)
    grad = worker.engine.passes.heads.grad
    assert [float(grad[token]) for token in BEFORE_OBSERVATIONS] == [0.0, 0.0]
    assert all(float(grad[token]) != 0.0 for token in (1, 4, 6, 3))


def test_passes_read_the_sampled_tokens_alone() -> None:
    policy, critic = ready(PolicyWorker(0)), ready(CriticWorker(0))
    share = Work((np.array([22]), np.array([21])))
    logps = policy.engine.passes.table.detach().log_softmax(-1)
    heads = critic.engine.passes.heads.detach()
    found = policy.logprobs(share, [conversations()], 1.0)
    values = critic.values(share, [conversations()])
    pairs = [[(3, 0), (1, 4)], [(1, 4), (4, 2), (6, 0), (0, 3)]]
    for row, own, each in zip(found.values.rows(), values.values.rows(), pairs, strict=True):
        assert row.tolist() == pytest.approx([float(logps[a, b]) for a, b in each], rel=1e-5)
        assert own.tolist() == pytest.approx([float(heads[a]) for a, _ in each], rel=1e-5)


def dense(rows: Ragged, filler: float) -> torch.Tensor:
    """(B, T) over all response tokens, with `filler` at those that were not sampled."""
    whole = torch.full((2, 6), filler, dtype=torch.float64)
    for place, row in enumerate(SAMPLED):
        at = torch.tensor(np.flatnonzero(row))
        whole[place, at] = torch.tensor(rows.row(place).astype(np.float64))
    return whole


@pytest.mark.parametrize("filler", [0.0, 123.0, float("nan")])
def test_shaping_and_advantages_skip_observations(filler: float) -> None:
    """Equal to the ops on whole rows with a mask, whatever stands at the masked positions."""
    batch = conversations()
    old, ref, values = numbers(7, -3.0, -1.0), numbers(8, -3.0, -1.0), numbers(9, -1.0, 1.0)
    scores = Scores(IDS, np.array([2.0, -1.0], np.float32), ("", ""))
    made, summary = PolicyWorker(0).build_experience(
        Work((IDS,)), [batch], [TokenField(IDS, old)], [TokenField(IDS, ref)],
        [TokenField(IDS, values)], scores, ShapingSpec(0.1, 0.9, 0.8, PartSpec("gae")),
    )  # fmt: skip
    counted = torch.zeros(2, 6, dtype=torch.bool)
    for place, row in enumerate(SAMPLED):
        counted[place, : len(row)] = torch.tensor(row)
    whole = [dense(each, filler) for each in (old, ref, values)]
    rewards = kl_shaped_rewards(
        torch.tensor([2.0, -1.0], dtype=torch.float64), whole[0], whole[1], counted, 0.1
    )
    advantages, returns = gae(rewards, whole[2], counted, 0.9, 0.8)
    assert made.returns is not None
    assert made.advantages.values.tolist() == pytest.approx(advantages[counted].tolist(), rel=1e-5)
    assert made.returns.values.tolist() == pytest.approx(returns[counted].tolist(), rel=1e-5)
    assert summary.shaped_returns.tolist() == pytest.approx(rewards.sum(1).tolist(), rel=1e-5)
    gaps = [old.row(n).astype(float) - ref.row(n).astype(float) for n in range(2)]
    assert summary.kl.tolist() == pytest.approx([float(gap.sum()) for gap in gaps], rel=1e-5)
    assert summary.advantage_count == sum(COUNTS)

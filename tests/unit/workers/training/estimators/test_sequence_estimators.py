"""Estimators without a critic, by hand: two prompts, of three and two samples."""

from __future__ import annotations

import pytest
import torch

from workers.records.specs import PartSpec
from workers.training.estimator import (
    KIND,
    Sequences,
    Tokens,
    find_estimator,
    sequence_numbers,
    token_advantages,
)

# Returns are scores less .5 times the KL: 1, 2, 6 and 4, 10, in mixed order.
BATCH = Sequences(
    group=torch.tensor([0, 1, 0, 1, 0]),
    scores=torch.tensor([2.0, 4.0, 1.0, 10.5, 6.0], dtype=torch.float64),
    kl=torch.tensor([2.0, 0.0, -2.0, 1.0, 0.0], dtype=torch.float64),
    lengths=torch.tensor([1, 2, 3, 4, 5]),
    kl_coefficient=0.5,
)


@pytest.mark.parametrize(
    ("name", "expected", "whitens"),
    [
        ("rloo", [-3.0, -6.0, -1.5, 6.0, 4.5], False),
        ("dr_grpo", [-2.0, -3.0, -1.0, 3.0, 3.0], False),
        ("reinforce_pp_baseline", [-2.0, -3.0, -1.0, 3.0, 3.0], True),
        (
            "grpo",
            # deviations sqrt(14 / 2) and sqrt(18 / 1)
            [-2 / 7**0.5, -3 / 18**0.5, -1 / 7**0.5, 3 / 18**0.5, 3 / 7**0.5],
            False,
        ),
    ],
)
def test_advantages_compare_the_samples_of_a_prompt(
    name: str, expected: list[float], whitens: bool
) -> None:
    estimator = find_estimator(PartSpec(name))
    assert sequence_numbers(estimator, BATCH).tolist() == pytest.approx(expected, abs=1e-6)
    assert (estimator.needs_values, estimator.needs_samples) == (False, 2)
    assert estimator.whitens is whitens


def test_equal_rewards_give_no_advantage() -> None:
    same = Sequences(BATCH.group, BATCH.scores * 0 + 0.1, BATCH.kl * 0, BATCH.lengths, 0.5)
    for name in ("rloo", "dr_grpo", "grpo", "reinforce_pp_baseline"):
        numbers = sequence_numbers(find_estimator(PartSpec(name)), same)
        assert numbers.tolist() == pytest.approx([0.0] * 5, abs=1e-9)


def test_reinforce_pp_sums_the_rewards_still_to_come() -> None:
    estimator = find_estimator(PartSpec("reinforce_pp"))
    tokens = Tokens(
        rewards=torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 0.0]], dtype=torch.float64),
        mask=torch.tensor([[True, True, True], [True, True, False]]),
        log_ratio=torch.zeros(2, 3, dtype=torch.float64),
        values=None,
        sequence=None,
        gamma=0.5,
        lam=0.0,  # of GAE alone
    )
    advantages, returns = token_advantages(estimator, tokens)
    assert advantages.tolist() == [[3.0, 4.0, 4.0], [16.0, 16.0, 0.0]]
    assert returns is None
    assert (estimator.needs_values, estimator.needs_samples, estimator.whitens) == (False, 1, True)


def test_the_names_are_those_of_the_files() -> None:
    names = ("distill", "dr_grpo", "gae", "grpo", "reinforce_pp", "reinforce_pp_baseline", "rloo")
    assert KIND.names() == names

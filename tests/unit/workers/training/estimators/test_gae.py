"""GAE as an estimator: the numbers of two tokens by hand, and what it needs."""

import pytest
import torch

from workers.training.estimator import Tokens, token_advantages
from workers.training.estimators.gae import ESTIMATOR


def test_two_tokens_by_hand() -> None:
    tokens = Tokens(
        rewards=torch.tensor([[1.0, 4.0, 9.0]], dtype=torch.float64),
        mask=torch.tensor([[True, True, False]]),
        log_ratio=torch.zeros(1, 3, dtype=torch.float64),
        values=torch.tensor([[0.5, 2.0, 9.0]], dtype=torch.float64),
        sequence=None,
        gamma=0.5,
        lam=0.25,
    )
    advantages, returns = token_advantages(ESTIMATOR, tokens)
    # Errors 1 + .5 * 2 - .5 = 1.5 and 4 - 2 = 2; the first advantage adds .125 of the second.
    assert advantages.tolist() == [pytest.approx([1.75, 2.0, 0.0])]
    assert returns is not None
    assert returns.tolist() == [pytest.approx([2.25, 4.0, 0.0])]


def test_it_needs_a_critic_and_one_sample() -> None:
    assert ESTIMATOR.needs_values
    assert ESTIMATOR.needs_samples == 1
    assert ESTIMATOR.of_sequences is None

"""What an estimator may return, and how one is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from workers.errors import ConfigError, NonFiniteError
from workers.records.specs import PartSpec
from workers.training.estimator import (
    KIND,
    Estimator,
    Sequences,
    Tokens,
    find_estimator,
    sequence_numbers,
    token_advantages,
    try_estimator,
)

MASK = torch.tensor([[True, True], [True, False]])
TOKENS = Tokens(
    rewards=torch.tensor([[1.0, 2.0], [3.0, 0.0]], dtype=torch.float64),
    mask=MASK,
    log_ratio=torch.zeros(2, 2, dtype=torch.float64),
    values=None,
    sequence=torch.tensor([5.0, 7.0], dtype=torch.float64),
    gamma=1.0,
    lam=0.95,
)
ALONE = Estimator(of_sequences=lambda batch: batch.returns)
NO_ESTIMATOR = 3


def test_an_estimator_of_ours_is_found_by_the_name_of_its_file() -> None:
    assert "gae" in KIND.names()
    assert find_estimator(PartSpec("gae")).needs_values


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gea", "did you mean gae"),
        (f"{__name__}:NO_ESTIMATOR", "it is a int"),
        ("no_such_module:E", "no module 'no_such_module'"),
    ],
)
def test_a_name_that_is_no_estimator_is_refused(name: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_estimator(PartSpec(name))
    assert says in f"{caught.value.what} {caught.value.fix}"
    assert caught.value.where == "algorithm.advantage"


def test_returns_of_sequences_are_scores_less_the_kl_penalty() -> None:
    pair = torch.tensor([0, 0])
    scores, kl = torch.tensor([[3.0, -1.0], [2.0, 4.0]], dtype=torch.float64)
    sequences = Sequences(pair, scores, kl, pair + 1, kl_coefficient=0.5)
    assert sequence_numbers(ALONE, sequences).tolist() == [2.0, -3.0]


def test_the_number_of_a_sequence_is_the_advantage_of_its_tokens() -> None:
    advantages, returns = token_advantages(ALONE, TOKENS)
    assert advantages.tolist() == [[5.0, 5.0], [7.0, 0.0]]
    assert returns is None


def test_masked_positions_have_no_advantage_whatever_the_estimator_says() -> None:
    advantages, _ = token_advantages(Estimator(of_tokens=lambda t: (t.rewards + 1, None)), TOKENS)
    assert advantages.tolist() == [[2.0, 3.0], [4.0, 0.0]]


@pytest.mark.parametrize(
    ("of_tokens", "says"),
    [
        (lambda t: t.rewards, "Tensor instead of (advantages, returns)"),
        (lambda t: (t.rewards.sum(1), None), "shape (2,) instead of (2, 2)"),
        (lambda t: (t.rewards.tolist(), None), "list instead of a tensor"),
        (lambda t: (t.rewards / 0, None), "NaN or infinity"),
        (lambda t: (t.rewards, t.rewards), "without needs_values there is no critic"),
        (lambda t: (t.values + 1, None), "raised TypeError"),
    ],
)
def test_anything_else_than_advantages_is_refused(
    of_tokens: Callable[[Tokens], Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        token_advantages(Estimator(of_tokens=of_tokens), TOKENS)
    assert says in caught.value.what


def test_an_estimator_with_a_critic_must_give_it_returns() -> None:
    lacking = Estimator(of_tokens=lambda t: (t.rewards, None), needs_values=True)
    with pytest.raises(ConfigError, match="NoneType instead of a tensor"):
        token_advantages(lacking, TOKENS)


def test_errors_of_our_own_pass_through() -> None:
    def of_tokens(_: Tokens) -> Any:
        raise NonFiniteError("sequence 3", where="here")

    with pytest.raises(NonFiniteError):
        token_advantages(Estimator(of_tokens=of_tokens), TOKENS)


def test_no_numbers_and_no_way_to_use_tokens_is_told_at_the_trial() -> None:
    with pytest.raises(ConfigError, match="so it needs of_tokens"):
        try_estimator(f"{__name__}:NOTHING")
    try_estimator(f"{__name__}:ALONE")
    try_estimator("gae")


NOTHING = Estimator()


@pytest.mark.parametrize(
    "wrong",
    [
        {"of_sequences": 3},
        {"of_tokens": None},
        {"needs_values": "yes"},
        {"needs_samples": "2"},
        {"needs_samples": 0},
        {"needs_samples": True},
    ],
)
def test_a_field_of_another_type_is_refused_where_it_is_written(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(wrong))):
        Estimator(**wrong)


def test_what_an_estimator_changes_in_place_stays_with_it_and_gradients_end() -> None:
    def careless(tokens: Tokens) -> tuple[torch.Tensor, None]:
        tokens.mask.fill_(True)
        return tokens.rewards.mul_(2.0).float().requires_grad_(), None

    rewards, mask = TOKENS.rewards.clone(), MASK.clone()
    found, _ = token_advantages(Estimator(of_tokens=careless), TOKENS)
    assert TOKENS.rewards.equal(rewards)
    assert TOKENS.mask.equal(mask)
    assert found.tolist() == [[2.0, 4.0], [6.0, 0.0]]
    assert (found.dtype, found.requires_grad) == (torch.float64, False)


def test_an_estimator_that_leaves_its_process_or_returns_no_real_number_is_refused() -> None:
    def leaves(batch: Sequences) -> torch.Tensor:
        raise SystemExit(0)

    one = torch.ones(1, dtype=torch.float64)
    batch = Sequences(torch.tensor([0]), one, one, torch.tensor([1]), 0.1)
    for function in (leaves, lambda _: one.to("meta"), lambda _: one * 1j):
        with pytest.raises(ConfigError):
            sequence_numbers(Estimator(of_sequences=function), batch)

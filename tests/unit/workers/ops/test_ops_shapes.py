"""Every array of another shape than its mask is refused, by its own name, whatever the function.

Arrays of one row would broadcast against a batch of equal rows, and give a number that looks right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from workers.ops import (
    gae,
    importance_weights,
    kl_shaped_rewards,
    masked_mean,
    masked_sum,
    ppo_policy_loss,
    ratio_stats,
    value_loss,
    value_stats,
    whiten,
)

# a function, its arrays in order with the mask, and the plain numbers that follow
FUNCTIONS: list[tuple[Callable[..., Any], tuple[str, ...], tuple[Any, ...]]] = [
    (gae, ("rewards", "values", "mask"), (1.0, 0.9)),
    (kl_shaped_rewards, ("scores", "logprobs", "ref_logprobs", "mask"), (0.1,)),
    (importance_weights, ("old_logprobs", "rollout_logprobs", "mask"), (2.0,)),
    (ppo_policy_loss, ("logprobs", "old_logprobs", "advantages", "mask"), (0.2,)),
    (ratio_stats, ("logprobs", "old_logprobs", "mask"), ()),
    (value_loss, ("values", "old_values", "returns", "mask"), (0.2,)),
    (value_stats, ("values", "old_values", "returns", "mask"), (0.2,)),
    (masked_sum, ("x", "mask"), ()),
    (masked_mean, ("x", "mask"), ()),
    (whiten, ("x", "mask"), ()),
]
CASES = [
    pytest.param(function, names, rest, wrong, id=f"{function.__name__}-{wrong}")
    for function, names, rest in FUNCTIONS
    for wrong in names
    if wrong not in ("mask", "scores")
]


def arrays(names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    made = {name: torch.rand(2, 3) for name in names}
    made["mask"] = torch.ones(2, 3, dtype=torch.bool)
    if "scores" in made:
        made["scores"] = torch.rand(2)
    return made


@pytest.mark.parametrize(("function", "names", "rest", "wrong"), CASES)
def test_an_array_of_another_shape_is_refused_by_its_name(
    function: Callable[..., Any], names: tuple[str, ...], rest: tuple[Any, ...], wrong: str
) -> None:
    given = arrays(names)
    function(*given.values(), *rest)
    given[wrong] = torch.rand(1, 3)
    with pytest.raises(ValueError, match=rf"^{wrong} is \(1, 3\), its mask \(2, 3\)"):
        function(*given.values(), *rest)


@pytest.mark.parametrize(("function", "names", "rest"), FUNCTIONS)
def test_a_mask_of_numbers_is_refused(
    function: Callable[..., Any], names: tuple[str, ...], rest: tuple[Any, ...]
) -> None:
    given = arrays(names)
    given["mask"] = torch.ones(2, 3)
    with pytest.raises(TypeError, match="mask must be bool"):
        function(*given.values(), *rest)


def test_weights_of_another_shape_are_refused_by_their_name() -> None:
    given = arrays(("logprobs", "old_logprobs", "advantages", "mask"))
    with pytest.raises(ValueError, match=r"^weights is \(1, 3\)"):
        ppo_policy_loss(*given.values(), 0.2, weights=torch.rand(1, 3))

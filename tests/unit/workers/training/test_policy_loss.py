"""Averages of the policy's loss over a step, its KL term, and what a loss of a user may return."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from workers.errors import ConfigError
from workers.ops import ResponseTokens, Surrogate
from workers.records.specs import PartSpec, PolicyLossSpec
from workers.records.training import StepWork, Work
from workers.training.policy_loss import (
    KIND,
    PolicyLoss,
    batch_loss,
    find_policy_loss,
    try_policy_loss,
)

DOCS = Path(__file__).parents[4] / "docs" / "extending.md"
SPEC = PolicyLossSpec(0.2, 1.0, 0.0, 1.0, max_response_tokens=8)
# Two sequences of 3 and 1 tokens at ratio 1, so that a term is minus the advantage.
TOKENS = ResponseTokens(
    torch.tensor([-1.0, -2.0, -0.5, -3.0], dtype=torch.float64, requires_grad=True),
    torch.tensor([-1.0, -2.0, -0.5, -3.0], dtype=torch.float64),
    torch.tensor([1.0, 2.0, 6.0, -5.0], dtype=torch.float64),
    torch.tensor([0, 0, 0, 1]),
    torch.tensor([3, 1]),
)
STEP = StepWork(Work(()), tokens=10, sequences=4)
NO_LOSS = 3
NAMES = ("logprobs", "old_logprobs", "advantages")
SLOPE = PolicyLoss(lambda t, clip: Surrogate(-t.advantages * t.logprobs, t.advantages > clip.high))


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        ("tokens", -(1 + 2 + 6 - 5) / 10),
        ("sequences", -((1 + 2 + 6) / 3 - 5) / 4),
        ("constant", -(1 + 2 + 6 - 5) / (4 * 8)),
    ],
)
def test_terms_are_averaged_over_the_step(aggregate: Any, expected: float) -> None:
    found = batch_loss(TOKENS, None, None, replace(SPEC, aggregate=aggregate), STEP)
    assert found.policy.item() == pytest.approx(expected)
    assert found.kl is None
    weights = torch.tensor([0.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    weighted = batch_loss(TOKENS, None, weights, replace(SPEC, aggregate=aggregate), STEP)
    by_hand = {"tokens": 7 / 10, "sequences": (-1 + 10) / 4, "constant": 7 / 32}[aggregate]
    assert weighted.policy.item() == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("estimator", "each"),
    [
        ("k1", lambda d: d),
        ("k2", lambda d: d * d / 2),
        ("k3", lambda d: math.exp(-d) - 1 + d),
    ],
)
def test_the_kl_term_has_the_averages_of_the_loss(estimator: Any, each: Any) -> None:
    reference = torch.tensor([-1.5, -1.0, -0.5, -3.25], dtype=torch.float64)
    spec = replace(SPEC, aggregate="sequences", kl_estimator=estimator)
    found = batch_loss(TOKENS, reference, torch.zeros(4), spec, STEP)
    assert found.kl is not None
    expected = ((each(0.5) + each(-1.0) + each(0.0)) / 3 + each(0.25)) / 4
    assert found.kl.item() == pytest.approx(expected)


def test_the_gradient_of_k2_is_that_of_the_divergence() -> None:
    # In expectation over the policy: sum_a p_a (log p_a - log q_a), by autograd.
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    other = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(-1)
    logp = logits.log_softmax(-1)
    # Every action once, weighted by how often the policy takes it.
    tokens = ResponseTokens(
        logp, logp.detach(), torch.zeros(5).double(), torch.arange(5), torch.ones(5).long()
    )
    slopes = []
    for i in range(5):
        one = ResponseTokens(
            *(getattr(tokens, n)[i : i + 1] for n in NAMES),
            torch.zeros(1).long(),
            tokens.lengths[:1],
        )
        spec = replace(SPEC, kl_estimator="k2")
        kl = batch_loss(one, other[i : i + 1], None, spec, StepWork(Work(()), 1, 1)).kl
        assert kl is not None
        (slope,) = torch.autograd.grad(kl, logits, retain_graph=True)
        slopes.append(logp.exp()[i].detach() * slope)
    (expected,) = torch.autograd.grad((logp.exp() * (logp - other)).sum(), logits)
    assert torch.allclose(torch.stack(slopes).sum(0), expected, atol=1e-12)


def test_the_upper_bound_is_the_lower_one_unless_it_is_given() -> None:
    tokens = ResponseTokens(
        TOKENS.logprobs, TOKENS.old_logprobs - math.log(1.25), torch.ones(4).double(),
        TOKENS.sequence, TOKENS.lengths,
    )  # fmt: skip
    step = StepWork(Work(()), 4, 2)
    assert batch_loss(tokens, None, None, SPEC, step).policy.item() == pytest.approx(-1.2)
    wide = batch_loss(tokens, None, None, replace(SPEC, clip_high=0.3), step)
    assert wide.policy.item() == pytest.approx(-1.25)
    assert not wide.clipped.any()
    bad = ResponseTokens(
        tokens.logprobs, TOKENS.old_logprobs - math.log(9.0), -torch.ones(4).double(),
        tokens.sequence, tokens.lengths,
    )  # fmt: skip
    assert batch_loss(bad, None, None, SPEC, step).policy.item() == pytest.approx(9.0)
    dual = batch_loss(bad, None, None, replace(SPEC, dual_clip=3.0), step)
    assert dual.policy.item() == pytest.approx(3.0)


@pytest.mark.parametrize("name", ["clip", "gspo", "cispo"])
@pytest.mark.parametrize("aggregate", ["tokens", "sequences", "constant"])
def test_a_step_split_into_micro_batches_has_the_same_gradient(name: str, aggregate: Any) -> None:
    rng = np.random.default_rng(5)
    lengths = [4, 1, 3, 2]
    size = sum(lengths)
    new, old, gains, ref = torch.tensor(rng.normal(0, 0.4, (4, size)))
    spec = replace(SPEC, policy_loss=PartSpec(name), aggregate=aggregate, kl_estimator="k3")
    step = StepWork(Work(()), size, 4)
    gradients = []
    for groups in ([[0, 1, 2, 3]], [[2], [0, 3], [], [1]]):
        live = new.clone().requires_grad_()
        for group in groups:
            places = [np.arange(*np.cumsum([0, *lengths])[i : i + 2]) for i in group]
            at = torch.tensor(np.concatenate([*places, np.zeros(0)]), dtype=torch.int64)
            counts = torch.tensor([lengths[i] for i in group], dtype=torch.int64)
            owner = torch.arange(len(group)).repeat_interleave(counts)
            tokens = ResponseTokens(live[at], old[at], gains[at], owner, counts)
            found = batch_loss(tokens, ref[at], None, spec, step)
            assert found.kl is not None
            (found.policy + 0.3 * found.kl).backward()
        gradients.append(live.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-14)
    assert gradients[0].abs().min() > 0 or name == "clip"


def test_losses_are_found_by_name_or_path() -> None:
    assert KIND.names() == ("cispo", "clip", "gspo")
    assert find_policy_loss(PartSpec(f"{__name__}:SLOPE")) is SLOPE
    try_policy_loss(f"{__name__}:SLOPE")
    for name in KIND.names():
        try_policy_loss(name)
    with pytest.raises(ConfigError) as caught:
        find_policy_loss(PartSpec("cilp"))
    assert caught.value.where == "algorithm.policy_loss"
    assert "did you mean clip" in str(caught.value.fix)
    with pytest.raises(ConfigError, match="it is a int"):
        find_policy_loss(PartSpec(f"{__name__}:NO_LOSS"))
    with pytest.raises(TypeError, match="of_tokens is 3"):
        PolicyLoss(3)  # type: ignore[arg-type]


def boom(tokens: ResponseTokens, clip: Any) -> Surrogate:
    raise KeyError("reward")


@pytest.mark.parametrize(
    ("of_tokens", "says"),
    [
        (lambda t, clip: t.logprobs, "Tensor instead of Surrogate"),
        (lambda t, clip: (t.logprobs.sum(), t.logprobs > 0), r"of shape \(\) instead of"),
        (lambda t, clip: (t.logprobs, t.logprobs), "float64 of shape .* instead of torch.bool"),
        (lambda t, clip: (t.logprobs.tolist(), None), "list instead of a tensor"),
        (boom, "raised KeyError"),
    ],
)
def test_what_is_no_loss_per_token_is_refused(
    of_tokens: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "SLOPE", PolicyLoss(of_tokens))
    spec = replace(SPEC, policy_loss=PartSpec(f"{__name__}:SLOPE"))
    with pytest.raises(ConfigError, match=says) as caught:
        batch_loss(TOKENS, None, None, spec, STEP)
    assert caught.value.where == "algorithm.policy_loss"


def test_a_loss_without_a_gradient_is_refused_when_it_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flat = PolicyLoss(lambda t, clip: Surrogate(t.advantages * 1.0, t.advantages > 0))
    monkeypatch.setitem(globals(), "SLOPE", flat)
    with pytest.raises(ConfigError, match="do not depend on the log-probabilities"):
        try_policy_loss(f"{__name__}:SLOPE")


def test_the_documented_loss_is_that_of_its_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = DOCS.read_text().partition("## A new policy loss")[2]
    (tmp_path / "my_losses.py").write_text(re.findall(r"```python\n(.*?)```", page, re.S)[0])
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    try_policy_loss("my_losses:LOSS")
    tokens = ResponseTokens(
        torch.tensor([math.log(1.5), math.log(0.9)], dtype=torch.float64),
        torch.zeros(2).double(), torch.tensor([2.0, -1.0]).double(), torch.zeros(2).long(),
        torch.tensor([2]),
    )  # fmt: skip
    spec = replace(SPEC, policy_loss=PartSpec("my_losses:LOSS"))
    found = batch_loss(tokens, None, None, spec, StepWork(Work(()), 1, 1))
    # -3 + 2 * .25 / .4 and .9 + .01 / .4
    assert found.policy.item() == pytest.approx(-3.0 + 1.25 + 0.9 + 0.025)
    assert found.clipped.tolist() == [True, False]

"""Masked reductions, log-probabilities and KL against literals, fp64 sums and known limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.ops import (
    AdaptiveKLController,
    entropy,
    kl_estimate,
    masked_mean,
    masked_sum,
    token_logprobs,
    whiten,
)

NAN = float("nan")


def test_masked_mean_of_literals() -> None:
    x = torch.tensor([[1.0, 2.0, NAN], [10.0, NAN, NAN]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(x, mask).item() == pytest.approx(13 / 3)
    assert masked_mean(x, mask, dim=1).tolist() == [1.5, 10.0]
    assert masked_sum(x, mask, dim=0).tolist() == [11.0, 2.0, 0.0]


def test_nothing_counted_is_zero_with_zero_gradient() -> None:
    x = torch.full((2, 3), NAN, requires_grad=True)
    mean = masked_mean(x, torch.zeros(2, 3, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0.0
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0] * 3] * 2


def test_masks_must_be_boolean_and_of_equal_shape() -> None:
    with pytest.raises(TypeError, match="bool"):
        masked_mean(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        masked_mean(torch.ones(2, 1), torch.ones(2, 3, dtype=torch.bool))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.integers(0, 5))
def test_whitened_values_have_mean_zero_and_biased_variance_one(
    values: list[float], padding: int
) -> None:
    x = torch.tensor([*values, *[NAN] * padding], dtype=torch.float64)
    mask = torch.arange(len(x)) < len(values)
    if x[mask].var(correction=0) < 1e-3:
        return
    white = whiten(x, mask)
    kept = white[mask]
    assert kept.mean().item() == pytest.approx(0, abs=1e-6)
    assert (kept @ kept / len(values)).item() == pytest.approx(1, abs=1e-4)
    assert white[~mask].tolist() == [0.0] * padding
    # Putting the mean back shifts every value by the mean of the input, no more.
    shift = (whiten(x, mask, shift_mean=False) - white)[mask]
    assert torch.allclose(shift, x[mask].mean().expand_as(shift))


def test_whitening_literals() -> None:
    mask = torch.ones(4, dtype=torch.bool)
    x = torch.tensor([1.0, 3.0, 1.0, 3.0])
    assert torch.allclose(whiten(x, mask), torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    assert torch.allclose(whiten(x, mask, shift_mean=False), torch.tensor([1.0, 3.0, 1.0, 3.0]))
    assert whiten(torch.full((4,), 5.0), mask).tolist() == [0.0] * 4


def test_whitening_with_the_moments_of_a_larger_batch() -> None:
    mask = torch.tensor([True, True, False])
    x = torch.tensor([1.0, 3.0, NAN])
    assert whiten(x, mask, moments=(5.0, 2.0)).tolist() == [-2.0, -1.0, 0.0]
    assert whiten(x, mask, shift_mean=False, moments=(5.0, 2.0)).tolist() == [3.0, 4.0, 0.0]
    with pytest.raises(ValueError, match="x is"):
        whiten(x[:2], mask, moments=(0.0, 1.0))


def test_token_logprobs_of_literals() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]])
    got = token_logprobs(logits, torch.tensor([1, 1])).exp()
    assert got.tolist() == pytest.approx([0.75, 0.2])


def test_temperature_divides_logits() -> None:
    # At temperature 2, odds of 9 to 1 become odds of 3 to 1.
    logits = torch.tensor([[0.0, math.log(9.0)]])
    got = token_logprobs(logits, torch.tensor([1]), temperature=2.0).exp()
    assert got.item() == pytest.approx(0.75)
    assert entropy(logits, temperature=1e6).item() == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(logits, torch.tensor([1]), temperature=0.0)


def test_logprobs_survive_huge_logits_and_half_precision() -> None:
    assert token_logprobs(torch.tensor([[1e4, 0.0]]), torch.tensor([1])).item() == -1e4
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(5)
    exact = [
        float(row[y]) - math.log(math.fsum(math.exp(v) for v in row.tolist()))
        for row, y in zip(logits.double(), labels.tolist(), strict=True)
    ]
    got = token_logprobs(logits, labels)
    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx(exact, abs=1e-5)


def test_logprob_gradient_is_onehot_minus_probabilities() -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: token_logprobs(z, torch.tensor([2]), 0.7), logits)
    token_logprobs(logits, torch.tensor([2])).sum().backward()
    weights = [math.exp(v) for v in (0.5, -1.0, 2.0)]
    expected = [
        -weights[0] / sum(weights),
        -weights[1] / sum(weights),
        1 - weights[2] / sum(weights),
    ]
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 3, 2)])
def test_the_last_axis_is_the_vocabulary_whatever_comes_before_it(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(*shape, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, shape, generator=generator)
    found, spread = token_logprobs(logits, labels, 0.7), entropy(logits, 0.7)
    assert found.shape == spread.shape == shape
    for row, label, own, wide in zip(
        logits.reshape(-1, 5).tolist(), labels.reshape(-1).tolist(),
        found.reshape(-1).tolist(), spread.reshape(-1).tolist(), strict=True,
    ):  # fmt: skip
        total = math.fsum(math.exp(z / 0.7) for z in row)
        p = [math.exp(z / 0.7) / total for z in row]
        assert own == pytest.approx(math.log(p[label]))
        assert wide == pytest.approx(-math.fsum(q * math.log(q) for q in p))


def test_labels_must_match_logits() -> None:
    with pytest.raises(ValueError, match="labels"):
        token_logprobs(torch.zeros(2, 3, 7), torch.zeros(2, 2, dtype=torch.int64))


def test_entropy_limits() -> None:
    assert entropy(torch.zeros(8)).item() == pytest.approx(math.log(8))
    logits = torch.tensor([0.0, 0.0, -math.inf], requires_grad=True)
    value = entropy(logits)
    assert value.item() == pytest.approx(math.log(2))
    value.backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_kl_estimates_of_literals() -> None:
    p, q = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert kl_estimate(p, q, "k1").item() == pytest.approx(math.log(2))
    assert kl_estimate(p, q, "k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_estimate(p, q, "k3").item() == pytest.approx(0.5 - 1 + math.log(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [30.0, 89.0, 800.0])
def test_k3_of_far_log_probabilities_is_finite_with_its_gradient(
    dtype: torch.dtype, far: float
) -> None:
    # exp(-d) - 1 + d with the exponent at most 20; the slope of d alone is left beyond
    logprobs = torch.tensor([-far, far, 0.5], dtype=dtype, requires_grad=True)
    kl = kl_estimate(logprobs, torch.zeros(3, dtype=dtype), "k3")
    expected = [math.expm1(20.0) - far, math.expm1(-20.0) + far, math.expm1(-0.5) + 0.5]
    assert kl.tolist() == pytest.approx(expected, rel=1e-5)
    kl.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([1.0, 1.0, 1.0 - math.exp(-0.5)], rel=1e-5)


def test_k1_and_k3_are_unbiased_over_the_whole_vocabulary() -> None:
    # The expectation under p is a finite sum here, and so is the true divergence.
    p = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    q = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    true = sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    for kind in ("k1", "k3"):
        expected = (p * kl_estimate(p.log(), q.log(), kind)).sum().item()
        assert expected == pytest.approx(true, abs=1e-12)
    near = q * (1 + 1e-3 * torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64))
    near = near / near.sum()
    true = (near * (near.log() - q.log())).sum().item()
    assert (near * kl_estimate(near.log(), q.log(), "k2")).sum().item() == pytest.approx(
        true, rel=1e-2
    )


@settings(max_examples=50, deadline=None)
@given(st.floats(-20, 20), st.floats(-1e-3, 1e-3))
def test_k3_is_never_negative(level: float, gap: float) -> None:
    a = torch.tensor([level], dtype=torch.float32)
    assert kl_estimate(a, a + gap, "k3").item() >= 0.0


def test_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")  # pyright: ignore[reportArgumentType]


def test_adaptive_controller_literals() -> None:
    controller = AdaptiveKLController(initial=0.15, target=6.0, horizon=10_000)
    # Far above the target the error is cut at +.2: one batch of 500 gives 1 + .2 * .05 = 1.01.
    assert controller.update(60.0, 500) == pytest.approx(0.15 * 1.01)
    assert controller.update(0.0, 500) == pytest.approx(0.15 * 1.01 * 0.99)
    before = controller.value
    assert controller.update(6.0, 500) == before
    assert controller.update(6.6, 1000) == pytest.approx(before * 1.01)


def test_an_adaptive_controller_may_start_at_zero_and_take_in_nothing() -> None:
    controller = AdaptiveKLController(0.0, 0.5, 1)
    assert controller.update(3.0, 0) == 0.0
    small = AdaptiveKLController(0.5, 0.5, 1)
    assert small.update(3.0, 0) == 0.5
    assert small.update(3.0, 4) == pytest.approx(0.5 * 1.8)
    with pytest.raises(ValueError, match="n=5"):
        small.update(3.0, 5)
    with pytest.raises(ValueError, match="n=-1"):
        small.update(3.0, -1)
    for initial, target, horizon in ((-0.1, 1, 1), (0, 0, 1), (0, 1, 0)):
        with pytest.raises(ValueError, match="need initial"):
            AdaptiveKLController(initial, target, horizon)


def test_adaptive_controller_resumes_and_refuses_nonsense() -> None:
    controller = AdaptiveKLController(0.1, 6.0, 100)
    controller.update(9.0, 10)
    other = AdaptiveKLController(0.5, 6.0, 100)
    other.load_state_dict(controller.state_dict())
    assert other.update(3.0, 10) == controller.update(3.0, 10)
    with pytest.raises(ValueError, match="nan"):
        controller.update(NAN, 10)
    with pytest.raises(ValueError, match="horizon"):
        controller.update(1.0, 500)
    with pytest.raises(ValueError, match="target"):
        AdaptiveKLController(0.1, 0.0, 100)

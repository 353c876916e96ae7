"""The losses against hand literals, gradient identities and splits of one batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.ops import (
    importance_weights,
    pair_accuracy,
    ppo_policy_loss,
    ranking_loss,
    rankings_loss,
    ratio_stats,
    value_loss,
    value_stats,
)

NAN = float("nan")
TRUE3 = torch.ones(1, 3, dtype=torch.bool)


def _logs(*ratios: float) -> torch.Tensor:
    return torch.tensor([[math.log(r) for r in ratios]], dtype=torch.float64)


def test_policy_loss_of_literals() -> None:
    # Ratios 1.5 and .5 with clip .2, advantages of either sign: the pessimistic term is kept.
    logprobs = _logs(1.5, 0.5, 1.5, 0.5)
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]], dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    loss = ppo_policy_loss(logprobs, torch.zeros_like(logprobs), advantages, mask, 0.2)
    assert loss.item() == pytest.approx((-1.2 - 0.5 + 1.5 + 0.8) / 4)


def test_importance_weights_of_literals() -> None:
    # The trainer finds the tokens half, equally, 1.5 times and 4 times as likely; the cap is 2.
    old = _logs(0.5, 1.0, 1.5, 4.0).requires_grad_()
    mask = torch.ones(1, 4, dtype=torch.bool)
    weights, outside = importance_weights(old, torch.zeros_like(old), mask, 2.0)
    assert weights[0].tolist() == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert outside.tolist() == [[False, False, False, True]]
    assert not weights.requires_grad


@pytest.mark.parametrize(
    ("drop", "expected"), [(False, [0.7, 1.0, 1.5, 2.0]), (True, [0.0, 1.0, 1.5, 0.0])]
)
def test_tokens_beyond_a_bound_get_the_bound_or_nothing(drop: bool, expected: list[float]) -> None:
    old, mask = _logs(0.5, 1.0, 1.5, 4.0), torch.ones(1, 4, dtype=torch.bool)
    weights, outside = importance_weights(old, torch.zeros_like(old), mask, 2.0, 0.7, drop=drop)
    assert weights[0].tolist() == pytest.approx(expected)
    assert outside.tolist() == [[True, False, False, True]]
    with pytest.raises(ValueError, match=r"floor=2\.5"):
        importance_weights(old, old, mask, 2.0, 2.5)


def test_importance_weights_of_masked_tokens_are_zero_whatever_they_hold() -> None:
    mask = torch.tensor([[True, False, False]])
    old = torch.tensor([[0.0, NAN, float("inf")]])
    weights, _ = importance_weights(old, torch.zeros_like(old), mask, 2.0)
    assert weights.tolist() == [[1.0, 0.0, 0.0]]
    with pytest.raises(ValueError, match="cap=0"):
        importance_weights(old, old, mask, 0.0)
    with pytest.raises(ValueError, match="rollout_logprobs"):
        importance_weights(old, old[:, :2], mask, 2.0)


def test_weighted_policy_loss_of_literals() -> None:
    # Ratios 1.5 and .5, clip .2, advantages 1 and -1, weights .5 and 2; the masked third is junk.
    logprobs = torch.tensor([[math.log(1.5), math.log(0.5), NAN]], dtype=torch.float64)
    advantages = torch.tensor([[1.0, -1.0, NAN]], dtype=torch.float64)
    weights = torch.tensor([[0.5, 2.0, NAN]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    zero = torch.zeros_like(logprobs)
    loss = ppo_policy_loss(logprobs, zero, advantages, mask, 0.2, weights=weights)
    assert loss.item() == pytest.approx((0.5 * -1.2 + 2.0 * 0.8) / 2)


def test_weights_make_the_gradient_that_of_the_policy_that_would_have_sampled() -> None:
    # Summed over all actions, sampling probability x weight is the proximal policy's probability.
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    sampling = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(-1)
    advantages = torch.randn(5, generator=generator, dtype=torch.float64)
    mask = torch.ones(5, dtype=torch.bool)
    logprobs = logits.log_softmax(-1)
    weights, _ = importance_weights(logprobs.detach(), sampling, mask, 1e9)
    loss = ppo_policy_loss(
        logprobs, logprobs.detach(), advantages * sampling.exp(), mask, 0.2, weights=weights,
        denominator=1,
    )  # fmt: skip
    (got,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(-(advantages * logprobs.exp()).sum(), logits)
    assert torch.allclose(got, expected, atol=1e-14)


def test_clip_removes_exactly_the_gradients_that_would_go_further() -> None:
    logprobs = _logs(1.5, 0.5, 1.5, 0.5).requires_grad_()
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]], dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    ppo_policy_loss(logprobs, torch.zeros_like(logprobs), advantages, mask, 0.2).backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([0.0, -0.5 / 4, 1.5 / 4, 0.0])


def test_ratio_one_is_the_policy_gradient() -> None:
    # A categorical policy: the gradient is the mean of -A * d log pi, taken by autograd.
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    actions = torch.randint(5, (2, 4, 1), generator=generator)
    advantages = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    logprobs = logits.log_softmax(-1).gather(-1, actions).squeeze(-1)
    loss = ppo_policy_loss(logprobs, logprobs.detach(), advantages, mask, 0.2)
    (got,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(-(advantages * logprobs)[mask].mean(), logits)
    assert torch.allclose(got, expected, atol=1e-14)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_policy_and_value_gradients_match_finite_differences(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    new, old, target = torch.randn(3, 2, 3, generator=generator, dtype=torch.float64) * 0.4
    mask = torch.tensor([[True, True, False], [True, False, False]])
    new.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: ppo_policy_loss(x, old, target, mask, 0.2), new, eps=1e-7
    )
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, target, mask, 0.2), new, eps=1e-7)


def test_value_loss_of_literals() -> None:
    # Old value 0, clip .2. Return 1: v = .5 clips to .2, error .8 is the larger; v = -.5 keeps its
    # own error 1.5; return 0 and v = .1 stays inside.
    values = torch.tensor([[0.5, -0.5, 0.1]])
    returns = torch.tensor([[1.0, 1.0, 0.0]])
    loss = value_loss(values, torch.zeros(1, 3), returns, TRUE3, 0.2)
    assert loss.item() == pytest.approx((0.64 + 2.25 + 0.01) / 3 / 2)
    assert value_stats(values, torch.zeros(1, 3), returns, TRUE3, 0.2).clipped.item() == 1


@pytest.mark.parametrize(("value", "target", "clipped"), [(0.5, 1.0, 1), (0.5, -1.0, 0)])
def test_a_value_counts_as_clipped_where_the_old_one_holds_it_back(
    value: float, target: float, clipped: int
) -> None:
    # From 0 with clip .2: towards a return of 1 the value is cut at .2, away from -1 it is not.
    one = torch.ones(1, 1, dtype=torch.bool)
    new, old = torch.tensor([[value]]), torch.zeros(1, 1)
    assert value_stats(new, old, torch.tensor([[target]]), one, 0.2).clipped.item() == clipped


def test_value_stats_are_sums_over_counted_tokens() -> None:
    mask = torch.tensor([[True, True, False]])
    values, returns = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[2.0, 5.0, 7.0]])
    stats = value_stats(values, values, returns, mask, 0.2)
    assert [float(s) for s in stats] == [2.0, 0.0, 4.0, 10.0, 7.0, 29.0]
    # 1 - Var(1, 3) / Var(2, 5) = 1 - 1 / 2.25
    assert stats.explained_variance() == pytest.approx(1 - 1 / 2.25)


def test_unclipped_value_loss_is_half_the_squared_error() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0]])
    returns = torch.tensor([[2.0, 2.0, 1.0]])
    assert value_loss(values, values, returns, TRUE3, 0.2).item() == pytest.approx(5 / 3 / 2)


@pytest.mark.parametrize("poison", [NAN, math.inf, -math.inf, 1e30])
def test_masked_poison_reaches_neither_loss_nor_gradient(poison: float) -> None:
    mask = torch.tensor([[True, False, True]])
    clean = torch.tensor([[0.3, 0.0, -0.2]])
    for loss in (ppo_policy_loss, value_loss):
        results = []
        for bad in (0.0, poison):
            new = torch.where(mask, clean, torch.tensor(bad)).requires_grad_()
            other = torch.where(mask, clean * 0.5, torch.tensor(-bad))
            third = torch.where(mask, clean + 1.0, torch.tensor(bad))
            value = loss(new, other, third, mask, 0.2)
            value.backward()
            assert new.grad is not None
            results.append((value.item(), new.grad.tolist()))
        assert results[0] == results[1]
    dirty = torch.where(mask, clean, torch.tensor(poison))
    zeros = torch.zeros(1, 3)
    for stats in (ratio_stats(dirty, zeros, mask),
                  value_stats(dirty, zeros, dirty, mask, 0.2)):  # fmt: skip
        assert all(math.isfinite(float(s)) for s in stats)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(0, 4))
def test_a_split_batch_with_the_global_count_has_the_same_gradient(
    seed: int, cut: int, padding: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    new, old, target = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    mask = torch.arange(4) < torch.randint(0, 5, (6, 1), generator=generator)
    mask[0] = True
    count = float(mask.sum())
    for loss in (ppo_policy_loss, value_loss):
        whole = new.clone().requires_grad_()
        loss(whole, old, target, mask, 0.2).backward()
        parts = new.clone().requires_grad_()
        for rows in (slice(0, cut), slice(cut, 6), slice(0, 0)):
            pad = (0, padding)
            loss(
                torch.nn.functional.pad(parts[rows], pad, value=7.0),
                torch.nn.functional.pad(old[rows], pad, value=NAN),
                torch.nn.functional.pad(target[rows], pad, value=NAN),
                torch.nn.functional.pad(mask[rows], pad),
                0.2,
                denominator=count,
            ).backward()
        assert whole.grad is not None
        assert parts.grad is not None
        assert torch.allclose(whole.grad, parts.grad, atol=1e-12)


def test_shapes_and_denominators_are_checked() -> None:
    row = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="advantages"):
        ppo_policy_loss(row, row, torch.zeros(1, 1), TRUE3, 0.2)
    with pytest.raises(ValueError, match="returns"):
        value_loss(row, row, torch.zeros(3), TRUE3, 0.2)
    with pytest.raises(ValueError, match="denominator"):
        value_loss(row, row, row, TRUE3, 0.2, denominator=0)


def test_policy_stats_of_literals_add_up_over_shards() -> None:
    logprobs = _logs(2.0, 1.0, 4.0)
    zeros = torch.zeros_like(logprobs)
    mask = torch.tensor([[True, True, False]])
    stats = ratio_stats(logprobs, zeros, mask)
    assert stats.tokens.item() == 2
    assert stats.ratio.item() == pytest.approx(3.0)
    assert stats.ratio_max.item() == pytest.approx(2.0)
    # k3 from samples of the old policy: (rho - 1) - log rho.
    assert stats.approx_kl.item() == pytest.approx(1 - math.log(2))
    empty = ratio_stats(zeros[:0], zeros[:0], mask[:0])
    assert [float(s) for s in empty] == [0.0] * 4


def test_explained_variance_limits() -> None:
    returns = torch.tensor([[1.0, 2.0, 4.0]])
    for values, expected in ((returns, 1.0), (returns - 3.0, 1.0), (torch.zeros(1, 3), 0.0)):
        stats = value_stats(values, values, returns, TRUE3, 0.2)
        assert stats.explained_variance() == pytest.approx(expected)
    # far from 0 too, where the squares of fp32 numbers leave no room for their variance
    far = returns + 5000.0
    near = far - torch.tensor([[1.0, 0.0, 1.0]])
    found = value_stats(near, near, far, TRUE3, 0.2).explained_variance()
    assert found == pytest.approx(1 - (2 / 9) / (14 / 9))
    # 1 - Var(0, .5) / Var(0, 1): returns that vary by less than one unit
    near = value_stats(torch.tensor([[0.0, 0.5]]), torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]),
                       TRUE3[:, :2], 0.2)  # fmt: skip
    assert near.explained_variance() == pytest.approx(0.75)
    flat = value_stats(returns, returns, torch.ones(1, 3), TRUE3, 0.2)
    assert flat.explained_variance() == 0.0
    nothing = value_stats(returns, returns, returns, ~TRUE3, 0.2)
    assert nothing.explained_variance() == 0.0


def test_scores_and_ranks_are_one_vector_each() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and ranks \(3,\)"):
        ranking_loss(torch.zeros(2), torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        ranking_loss(torch.zeros(1, 2), torch.tensor([[1, 2]]))


def test_every_prompt_has_scores_and_ranks() -> None:
    with pytest.raises(ValueError, match="no ranking"):
        rankings_loss([], [])
    two = torch.tensor([1.0, 0.0])
    for scores, ranks in (([two, two], 1), ([two], 2)):
        with pytest.raises(ValueError, match="argument 2"):
            rankings_loss(scores, [torch.tensor([1, 2])] * ranks)


def test_ranking_loss_of_literals() -> None:
    # sigmoid(log 3) = 3/4: scores log 3, 0 ranked right and wrong.
    scores = torch.tensor([math.log(3.0), 0.0])
    assert ranking_loss(scores, torch.tensor([1, 2])).item() == pytest.approx(-math.log(3 / 4))
    assert ranking_loss(scores, torch.tensor([2, 1])).item() == pytest.approx(-math.log(1 / 4))


def test_a_margin_of_literals() -> None:
    # log 3 apart with a margin of log 3: sigmoid(0) = 1/2; the other way round sigmoid(-2 log 3).
    scores, third = torch.tensor([math.log(3.0), 0.0]), torch.tensor([2 / 3, 1 / 3])
    right, wrong = torch.tensor([1, 2]), torch.tensor([2, 1])
    one = torch.tensor([math.log(3.0), 0.0])  # above 1: limited to 1
    assert ranking_loss(scores, right, one).item() == pytest.approx(math.log1p(math.e / 3))
    # m = 1/3: log(1 + exp(1/3) / 3) = log 1.46520
    assert ranking_loss(scores, right, third).item() == pytest.approx(0.381994, abs=1e-6)
    # levels that contradict the ranks are no margin
    assert ranking_loss(scores, wrong, third).item() == pytest.approx(math.log(4.0))
    flat = torch.zeros(2)
    assert ranking_loss(scores, right, flat).item() == ranking_loss(scores, right).item()


def test_a_margin_is_that_of_each_pair() -> None:
    scores, ranks = torch.zeros(3), torch.tensor([1, 2, 3])
    levels = torch.tensor([0.0, -0.5, -1.0])
    pairs = [math.log1p(math.exp(m)) for m in (0.5, 0.5, 1.0)]
    assert ranking_loss(scores, ranks, levels).item() == pytest.approx(sum(pairs) / 3)
    both = rankings_loss([scores, scores], [ranks, ranks], levels=[levels, None])
    assert both.item() == pytest.approx((sum(pairs) / 3 + math.log(2)) / 2)


def test_the_gradient_of_a_margin_is_that_of_shifted_scores() -> None:
    ranks, levels = torch.tensor([1, 2]), torch.tensor([0.5, 0.0])
    scores = torch.tensor([0.3, -0.1], requires_grad=True)
    ranking_loss(scores, ranks, levels).backward()
    # d/ds_better = -sigmoid(-(0.4 - 0.5)) = -sigmoid(0.1)
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([-0.524979, 0.524979], abs=1e-6)


def test_equal_scores_cost_log_two_whatever_k() -> None:
    for k in range(2, 10):
        loss = ranking_loss(torch.zeros(k), torch.arange(k))
        assert loss.item() == pytest.approx(math.log(2))


def test_ties_are_dropped_from_loss_and_divisor() -> None:
    scores = torch.tensor([2.0, 5.0, 1.0])
    loss = ranking_loss(scores, torch.tensor([1, 1, 2]))
    pairs = [math.log1p(math.exp(-1.0)), math.log1p(math.exp(-4.0))]
    assert loss.item() == pytest.approx(sum(pairs) / 2)
    assert pair_accuracy(scores, torch.tensor([1, 1, 2])) == (2, 2)


def test_all_ties_give_zero_loss_and_zero_gradient() -> None:
    scores = torch.tensor([1.0, -1.0], requires_grad=True)
    loss = ranking_loss(scores, torch.tensor([1, 1]))
    loss.backward()
    assert loss.item() == 0.0
    assert scores.grad is not None
    assert scores.grad.tolist() == [0.0, 0.0]
    assert pair_accuracy(scores, torch.tensor([1, 1])) == (0, 0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 4)), min_size=2, max_size=9), st.data())
def test_ranking_loss_ignores_order_and_offset(
    rows: list[tuple[float, int]], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    scores = torch.tensor([s for s, _ in rows], dtype=torch.float64)
    ranks = torch.tensor([r for _, r in rows])
    shuffled = torch.tensor(list(order))
    base = ranking_loss(scores, ranks).item()
    assert ranking_loss(scores[shuffled], ranks[shuffled]).item() == pytest.approx(base)
    assert ranking_loss(scores + 3.0, ranks * 10).item() == pytest.approx(base)


def test_each_prompt_weighs_the_same_whatever_its_pairs() -> None:
    few, many = torch.tensor([math.log(3.0), 0.0]), torch.zeros(9)
    tied = torch.tensor([1.0, 2.0])
    ranks = [torch.tensor([1, 2]), torch.arange(9), torch.tensor([1, 1])]
    loss = rankings_loss([few, many, tied], ranks)
    assert loss.item() == pytest.approx((-math.log(3 / 4) + math.log(2)) / 2)
    part = rankings_loss([few], ranks[:1], denominator=2) + rankings_loss(
        [many, tied], ranks[1:], denominator=2
    )
    assert part.item() == pytest.approx(loss.item())


def test_pair_accuracy_counts_equal_scores_as_wrong() -> None:
    assert pair_accuracy(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1, 2, 3])) == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [25.0, 88.0, 89.0, 300.0, 800.0])
def test_far_log_ratios_have_a_finite_loss_and_a_zero_gradient(
    dtype: torch.dtype, far: float
) -> None:
    # A negative advantage is not clipped from above: the ratio itself is bounded, at e^20.
    logprobs = torch.tensor([[far, -far, 0.1]], dtype=dtype, requires_grad=True)
    advantages = torch.tensor([[-1.0, -1.0, -1.0]], dtype=dtype)
    loss = ppo_policy_loss(logprobs, torch.zeros_like(advantages), advantages, TRUE3, 0.2)
    loss.backward()
    assert loss.item() == pytest.approx((math.exp(20.0) + 0.8 + math.exp(0.1)) / 3, rel=1e-5)
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([0.0, 0.0, math.exp(0.1) / 3])
    stats = ratio_stats(logprobs, torch.zeros_like(advantages), TRUE3)
    assert all(math.isfinite(float(s)) for s in stats)
    assert stats.ratio_max.item() == pytest.approx(math.exp(20.0), rel=1e-5)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "slope"),
    [
        (19.5, -1.0, math.exp(19.5)),
        (3.0, -0.5, 0.5 * math.exp(3.0)),
        (-19.5, 2.0, -2.0 * math.exp(-19.5)),
        (-19.5, -2.0, 0.0),  # the clipped term is the larger one, and flat
    ],
)
def test_below_the_bound_the_gradient_is_that_of_finite_differences(
    log_ratio: float, advantage: float, slope: float
) -> None:
    one, zero = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.float64)

    def loss(new: torch.Tensor) -> torch.Tensor:
        return ppo_policy_loss(new, zero, zero + advantage, one, 0.2)

    new = (zero + log_ratio).requires_grad_()
    (got,) = torch.autograd.grad(loss(new), new)
    above, below = (loss(zero + log_ratio + step).item() for step in (1e-6, -1e-6))
    assert got.item() == pytest.approx(slope, rel=1e-12)
    assert got.item() == pytest.approx((above - below) / 2e-6, rel=1e-4)


def test_an_infinite_log_ratio_is_not_hidden_by_the_bound() -> None:
    for bad in (math.inf, NAN):
        logprobs = torch.tensor([[bad, 0.0, 0.0]])
        loss = ppo_policy_loss(logprobs, torch.zeros(1, 3), torch.tensor([[-1.0] * 3]), TRUE3, 0.2)
        assert not math.isfinite(loss.item())


def test_importance_weights_of_far_tokens_are_bounded() -> None:
    old = torch.tensor([[900.0, -900.0, 0.0]])
    weights, _ = importance_weights(old, torch.zeros(1, 3), TRUE3, 1e12)
    assert weights[0].tolist() == pytest.approx([math.exp(20.0), math.exp(-20.0), 1.0], rel=1e-5)

"""Log-probabilities in chunks, against double precision and autograd over the whole."""

from __future__ import annotations

import importlib

import pytest
import torch

from workers.ops import linear_logprobs

MODULE = importlib.import_module("workers.ops.linear_logprobs")  # the name is also a function's


def inputs(dtype: torch.dtype, *, bias: bool):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 6, generator=generator) for n in (11, 17))
    offset = torch.randn(17, generator=generator) if bias else None
    leaves = [None if x is None else x.to(dtype).requires_grad_() for x in (hidden, weight, offset)]
    return leaves, torch.randint(0, 17, (11,), generator=generator)


@pytest.mark.parametrize("chunk", [1, 4, 10, 11, 99])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 99])
def test_every_chunk_size_gives_the_whole(
    monkeypatch: pytest.MonkeyPatch, rows: int, chunk: int, bias: bool
) -> None:
    monkeypatch.setattr(MODULE, "_BLOCK", 17 * rows)
    (h, w, b), labels = inputs(torch.float64, bias=bias)
    logprobs, entropies = linear_logprobs(
        h, w, b, labels, chunk_tokens=chunk, temperature=0.6, with_entropy=True
    )
    weights = torch.arange(11.0, dtype=torch.float64) - 3.0
    assert not entropies.requires_grad
    (logprobs * weights).sum().backward()
    (h2, w2, b2), _ = inputs(torch.float64, bias=bias)
    p = ((h2 @ w2.T + (b2 if bias else 0.0)) / 0.6).softmax(-1)
    wanted = p[torch.arange(11), labels].log()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(logprobs, wanted)
    torch.testing.assert_close(entropies, -(p * p.log()).sum(-1).detach())
    for leaf, other in zip((h, w, b), (h2, w2, b2), strict=True):
        if leaf is not None:
            torch.testing.assert_close(leaf.grad, other.grad)


def test_the_weight_gradient_of_many_bf16_chunks_is_summed_in_fp32() -> None:
    """512 equal parts of 2**-8 beside a 1: in bf16 each of them alone would be rounded away."""
    hidden = torch.full((513, 1), 2.0**-8, dtype=torch.bfloat16)
    hidden[0] = 1.0
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.zeros(513, dtype=torch.int64)
    logprobs, _ = linear_logprobs(hidden, weight, None, labels, chunk_tokens=1)
    assert logprobs.dtype == torch.float32
    logprobs.sum().backward()
    # d log p / d z of the label is 1/2: half of 1 + 512 / 256.
    assert weight.grad.flatten().tolist() == [1.5, -1.5]


def test_what_needs_no_gradient_gets_none() -> None:
    (h, w, _), labels = inputs(torch.float32, bias=False)
    logprobs, entropies = linear_logprobs(h, w.detach(), None, labels, chunk_tokens=3)
    assert entropies is None
    logprobs.sum().backward()
    assert h.grad is not None
    with torch.no_grad():
        scored, _ = linear_logprobs(h, w, None, labels, chunk_tokens=3)
    assert not scored.requires_grad


@pytest.mark.parametrize(("chunk", "products"), [(4, 6), (10, 4), (11, 1), (99, 1)])
def test_logits_of_one_chunk_are_kept_and_of_several_computed_again(
    monkeypatch: pytest.MonkeyPatch, chunk: int, products: int
) -> None:
    (h, w, _), labels = inputs(torch.float32, bias=False)
    sizes: list[int] = []

    def counted(*arguments: torch.Tensor) -> torch.Tensor:
        logits = torch.nn.functional.linear(*arguments)
        sizes.append(len(logits))
        return logits

    monkeypatch.setattr(MODULE, "linear", counted)
    linear_logprobs(h, w, None, labels, chunk_tokens=chunk)[0].sum().backward()
    assert len(sizes) == products
    assert max(sizes) == min(chunk, 11)


@pytest.mark.parametrize("chunk", [4, 11])
def test_a_second_backward_pass_gives_the_same_gradient(chunk: int) -> None:
    (h, w, _), labels = inputs(torch.float64, bias=False)
    logprobs, _ = linear_logprobs(h, w, None, labels, chunk_tokens=chunk)
    first = torch.autograd.grad(logprobs.sum(), (h, w), retain_graph=True)
    second = torch.autograd.grad(logprobs.sum(), (h, w))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)


def test_a_chunk_without_tokens_is_refused() -> None:
    (h, w, _), labels = inputs(torch.float32, bias=False)
    with pytest.raises(ValueError, match="chunk_tokens"):
        linear_logprobs(h, w, None, labels, chunk_tokens=0)

"""Log-probabilities in chunks, against double precision and autograd over the whole."""

from __future__ import annotations

import pytest
import torch

from workers.ops import linear_logprobs


def inputs(dtype: torch.dtype, *, bias: bool):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 6, generator=generator) for n in (11, 17))
    offset = torch.randn(17, generator=generator) if bias else None
    leaves = [None if x is None else x.to(dtype).requires_grad_() for x in (hidden, weight, offset)]
    return leaves, torch.randint(0, 17, (11,), generator=generator)


@pytest.mark.parametrize("chunk", [1, 4, 10, 11, 99])
@pytest.mark.parametrize("bias", [False, True])
def test_every_chunk_size_gives_the_whole(chunk: int, bias: bool) -> None:
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


def test_nothing_of_the_size_of_all_logits_is_kept() -> None:
    (h, w, _), labels = inputs(torch.float32, bias=False)

    def kept(chunk: int) -> int:
        sizes: list[int] = []

        def note(x: torch.Tensor) -> torch.Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            linear_logprobs(h, w, None, labels, chunk_tokens=chunk)
        return max(sizes)

    assert kept(4) == kept(10) == w.numel()  # 17 * 6, not 11 * 17
    assert kept(11) == 11 * 17  # what fits is kept, and not computed again


def test_a_chunk_without_tokens_is_refused() -> None:
    (h, w, _), labels = inputs(torch.float32, bias=False)
    with pytest.raises(ValueError, match="chunk_tokens"):
        linear_logprobs(h, w, None, labels, chunk_tokens=0)

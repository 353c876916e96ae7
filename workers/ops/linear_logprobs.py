"""Log-probabilities from hidden states in chunks, without the logits of all tokens at once."""

# torch does not type `apply` and `split`.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from workers.ops.logprobs import entropy, token_logprobs


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    chunk_tokens: int,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`token_logprobs(hidden @ weight.T + bias, labels, temperature)`, in chunks of tokens.

    With more than one chunk, nothing of size (N, V) is kept: the backward pass recomputes the
    logits of each chunk, and sums the weight's gradient in at least fp32. A single chunk uses
    torch's usual autograd.

    Args:
        hidden: (N, D).
        weight: (V, D), of the output layer.
        bias: (V,) or None.
        labels: (N,) int64 in [0, V).
        chunk_tokens: maximum number of tokens whose logits are in memory at once, at least 1.
        temperature: the sampling temperature; divides logits.
        with_entropy: also return the entropy of each distribution, without a gradient.

    Returns:
        Log-probabilities (N,) and entropies (N,) or None; nats, at least fp32.

    Raises:
        ValueError: the chunk or the temperature is not positive.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={chunk_tokens} must be positive")
    if len(labels) > chunk_tokens:
        return _Chunked.apply(hidden, weight, bias, labels, chunk_tokens, temperature, with_entropy)
    return _read(hidden, weight, bias, labels, temperature, with_entropy)


def _read(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    temperature: float,
    with_entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    logits = linear(hidden, weight, bias)
    logprobs = token_logprobs(logits, labels, temperature)
    return logprobs, entropy(logits.detach(), temperature) if with_entropy else None


class _Chunked(torch.autograd.Function):
    """d logprob / d logits = (one-hot of the label - softmax) / temperature."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        chunk_tokens: int,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(hidden, weight, bias, labels)
        ctx.chunk_tokens, ctx.temperature = chunk_tokens, temperature
        parts = [
            _read(h, weight, bias, y, temperature, with_entropy)
            for h, y in zip(hidden.split(chunk_tokens), labels.split(chunk_tokens), strict=True)
        ]
        logprobs = torch.cat([part for part, _ in parts])
        if not with_entropy:
            return logprobs, None
        entropies = torch.cat([part for _, part in parts if part is not None])
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: the decorator's doing
        ctx: Any, *gradients: Any
    ) -> tuple[Tensor | None, ...]:
        gradient: Tensor = gradients[0]
        hidden, weight, bias, labels = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wide = torch.promote_types(weight.dtype, torch.float32)
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        of_bias = torch.zeros_like(bias, dtype=wide) if wants_bias else None
        for start in range(0, len(labels), ctx.chunk_tokens):
            part = slice(start, start + ctx.chunk_tokens)
            of_logits = _logit_gradient(
                linear(hidden[part], weight, bias), labels[part], gradient[part], ctx.temperature
            )
            if of_bias is not None:
                of_bias += of_logits.sum(0)
            of_logits = of_logits.to(weight.dtype)
            if of_hidden is not None:
                of_hidden[part] = of_logits @ weight
            if of_weight is not None and wide == weight.dtype:
                of_weight.addmm_(of_logits.T, hidden[part])
            elif of_weight is not None:
                of_weight += of_logits.T @ hidden[part]
        return (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(weight.dtype),
            None, None, None, None,
        )  # fmt: skip


def _logit_gradient(logits: Tensor, labels: Tensor, gradient: Tensor, temperature: float) -> Tensor:
    """Gradient of the logits, (n, V); allocates one array of that size besides the logits."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scale = (gradient / temperature).unsqueeze(1)
    return (
        torch.softmax(wide / temperature, dim=-1)
        .mul_(-scale)
        .scatter_add_(1, labels.unsqueeze(1), scale)
    )

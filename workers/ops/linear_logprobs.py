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

# Numbers of the logits that are normalized at once: the temporary arrays are a few megabytes.
_BLOCK = 1 << 20


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

    One array of (chunk_tokens, V) is in memory at once. With more than one chunk, nothing of size
    (N, V) is kept: the backward pass recomputes the logits of each chunk, and sums the weight's
    gradient in at least fp32. The logits of a single chunk are kept, and the backward pass turns
    them into their own gradient, so a second one recomputes them.

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
    given = (hidden, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        return _Chunked.apply(*given, labels, chunk_tokens, temperature, with_entropy)
    parts = [
        _read(linear(h, weight, bias), y, temperature, with_entropy)
        for h, y in zip(hidden.split(chunk_tokens), labels.split(chunk_tokens), strict=True)
    ]
    return _join(parts)


def _read(
    logits: Tensor, labels: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities and entropies of logits, block by block."""
    rows = max(1, _BLOCK // logits.shape[1])
    parts = [
        (token_logprobs(z, y, temperature), entropy(z, temperature) if with_entropy else None)
        for z, y in zip(logits.split(rows), labels.split(rows), strict=True)
    ]
    return _join(parts)


def _join(parts: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    entropies = [part for _, part in parts if part is not None]
    return torch.cat([part for part, _ in parts]), torch.cat(entropies) if entropies else None


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
        logits, parts = None, []
        for h, y in zip(hidden.split(chunk_tokens), labels.split(chunk_tokens), strict=True):
            logits = None  # frees those of the chunk before
            logits = linear(h, weight, bias)
            parts.append(_read(logits, y, temperature, with_entropy))
        ctx.logits = logits if len(parts) == 1 else None
        logprobs, entropies = _join(parts)
        if entropies is not None:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: the decorator's doing
        ctx: Any, *gradients: Any
    ) -> tuple[Tensor | None, ...]:
        gradient: Tensor = gradients[0]
        hidden, weight, bias, labels = ctx.saved_tensors
        kept, ctx.logits = ctx.logits, None  # a second pass recomputes them
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wide = torch.promote_types(weight.dtype, torch.float32)
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        of_bias = torch.zeros_like(bias, dtype=wide) if wants_bias else None
        for start in range(0, len(labels), ctx.chunk_tokens):
            part = slice(start, start + ctx.chunk_tokens)
            of_logits = linear(hidden[part], weight, bias) if kept is None else kept
            _to_gradient(of_logits, labels[part], gradient[part], ctx.temperature, of_bias)
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


def _to_gradient(
    logits: Tensor, labels: Tensor, gradient: Tensor, temperature: float, of_bias: Tensor | None
) -> None:
    """Overwrite logits (n, V) with their gradient, block by block, and add that of the bias."""
    rows = max(1, _BLOCK // logits.shape[1])
    blocks = zip(logits.split(rows), labels.split(rows), gradient.split(rows), strict=True)
    for block, y, of_logprobs in blocks:
        wide = block.to(torch.promote_types(block.dtype, torch.float32))
        scale = (of_logprobs / temperature).unsqueeze(1)
        of_block = torch.softmax(wide / temperature, dim=-1).mul_(-scale)
        of_block.scatter_add_(1, y.unsqueeze(1), scale)
        if of_bias is not None:
            of_bias += of_block.sum(0)
        block.copy_(of_block)

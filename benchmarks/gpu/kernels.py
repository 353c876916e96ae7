"""Checks of the trainers' own kernels: packed attention and chunked log-probabilities."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu.checks import Bench, Check, Figures, require
from benchmarks.gpu.samples import (
    model_folder,
    require_memory,
    sequences,
    shape,
    synchronize,
)
from workers.models.forward import ModelPasses
from workers.models.load import load_causal_lm
from workers.models.padding import response_cells
from workers.ops.linear_logprobs import linear_logprobs
from workers.records.specs import Dtype
from workers.records.training import ExperienceBatch

LARGE_VOCABULARY = 151_936  # Qwen 2.5's
_CHUNK_BYTES = 256 << 20  # trainer.logits_mib
_TURNS = 3


def check_packed_attention(bench: Bench) -> Figures:
    """Packed rows have the log-probabilities and gradients of padded ones."""
    found: Figures = {}
    exact = _lengths(24 if bench.quick else 96, 40)
    limits: dict[Dtype, tuple[float, float]] = {"float32": (1e-4, 1e-3), "bfloat16": (0.3, 0.1)}
    for dtype, (nats, share) in limits.items():
        (near, gradients, _), (far, others, _) = (
            _pass(bench, shape(bench, "20M"), dtype, sequences(exact), packed=packed)
            for packed in (True, False)
        )
        apart = float((near - far).abs().max())
        norm = float((gradients - others).norm() / others.norm())
        require(apart <= nats, f"{dtype}: log-probabilities are {apart:.2g} nats apart")
        require(norm <= share, f"{dtype}: gradients are {norm:.2g} of their norm apart")
        found |= {f"{dtype}_nats": apart, f"{dtype}_gradient": norm}
    return found


def check_packed_speed(bench: Bench) -> Figures:
    """Seconds of a forward and backward pass over 16k tokens, packed and padded."""
    require_memory(bench, 40)
    found: Figures = {}
    tokens = 512 if bench.quick else 16_384
    e = sequences(_lengths(tokens // 128, 128))
    for packed in (True, False):
        seconds = min(
            _pass(bench, shape(bench, "wide"), "bfloat16", e, packed=packed, turns=_TURNS)[2]
        )
        found[f"{'packed' if packed else 'padded'}_seconds"] = seconds
    return found | {"tokens": int(e.tokens.lengths.sum())}


def _lengths(sequences: int, median: int) -> list[int]:
    """Log-normal: a few are several times the median."""
    drawn = np.random.default_rng(2).lognormal(np.log(median), 0.6, sequences)
    return np.maximum(drawn, 4).astype(int).tolist()


def _pass(
    bench: Bench, name: str, dtype: Dtype, e: ExperienceBatch, *, packed: bool, turns: int = 1
) -> tuple[Tensor, Tensor, list[float]]:
    """Log-probabilities, the first layer's gradient, and the seconds of each turn."""
    folder = str(model_folder(bench, name))
    model = load_causal_lm(folder, dtype=dtype, packed=packed)
    nn.Module.to(model, bench.device)
    passes = ModelPasses(model, packed=packed)
    first = next(p for n, p in model.named_parameters() if n.endswith("q_proj.weight"))
    seconds: list[float] = []
    logprobs = torch.empty(0)
    for _ in range(turns):
        model.zero_grad()
        synchronize(bench)
        began = time.perf_counter()
        rows = passes.lay(e.tokens, bench.device)
        logprobs, _ = passes.logprobs(rows, response_cells(rows, e.prompt_lengths))
        (logprobs * torch.tensor(e.advantages.values, device=bench.device)).sum().backward()
        synchronize(bench)
        seconds.append(time.perf_counter() - began)
    assert first.grad is not None, "the loss depends on the first layer"
    return logprobs.detach().cpu(), first.grad.float().cpu(), seconds


def check_chunked_logprobs(bench: Bench) -> Figures:
    """Memory of log-probabilities under a large vocabulary does not grow with the tokens."""
    vocabulary = 1_000 if bench.quick else LARGE_VOCABULARY
    limit = _CHUNK_BYTES // (4 * vocabulary)
    chunk, most = (16, 256) if bench.quick else (limit, 32_768)
    torch.manual_seed(0)
    weight = torch.randn(vocabulary, 64, device=bench.device, requires_grad=True)
    found: Figures = {"vocabulary": vocabulary}
    worst = _against_at_once(weight, chunk)
    require(worst <= 1e-4, f"chunks differ from all at once by {worst:.2g}")
    found["largest_difference"] = worst
    peaks = {
        tokens: _added(bench, lambda n=tokens: _forward_backward(weight, n, chunk))
        for tokens in (most // 16, most // 4, most)
    }
    if bench.cuda:
        found |= {f"mib_at_{tokens}": peak / 2**20 for tokens, peak in peaks.items()}
        growth = max(peaks.values()) / min(peaks.values())
        found["growth"] = growth
        require(growth <= 1.25, f"16 times the tokens need {growth:.2f} times the memory")
    return found


def _forward_backward(weight: Tensor, tokens: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities and the weight's gradient."""
    weight.grad = None
    generator = torch.Generator(weight.device).manual_seed(tokens)
    hidden = torch.randn(tokens, 64, device=weight.device, generator=generator) / 8
    labels = torch.randint(0, len(weight), (tokens,), device=weight.device, generator=generator)
    logprobs, _ = linear_logprobs(
        hidden, weight, None, labels, chunk_tokens=chunk, with_entropy=True
    )
    logprobs.mean().backward()
    assert weight.grad is not None, "it takes part"
    return logprobs.detach(), weight.grad


def _against_at_once(weight: Tensor, chunk: int) -> float:
    """Largest difference from torch's own log-softmax of all logits."""
    tokens = 2 * chunk + chunk // 2
    logprobs, gradient = _forward_backward(weight, tokens, chunk)
    kept = gradient.clone()
    whole, expected = _forward_backward(weight, tokens, tokens)
    scale = float(expected.abs().max())
    return max(float((logprobs - whole).abs().max()), float((kept - expected).abs().max()) / scale)


def _added(bench: Bench, work: Callable[[], object]) -> int:
    """Bytes that work adds at most to what is allocated; 0 on a CPU."""
    if not bench.cuda:
        work()
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


CHECKS = [
    Check("packed attention", check_packed_attention, 60.0),
    Check("speed of packed rows", check_packed_speed, 60.0),
    Check("chunked log-probabilities", check_chunked_logprobs, 60.0),
]

"""How fast is a policy step of a billion parameters, as a share of what the GPU can do?"""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.gpu.checks import Bench, Check, Figures, require
from benchmarks.gpu.samples import (
    llama,
    policy_step,
    require_memory,
    sequences,
    shape,
    synchronize,
    trainer,
    update,
)

AIM = 0.45  # of the data sheet's bf16 rate
# Dense bf16 TFLOP/s by the vendor's data sheets, without sparsity.
PEAK = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "B200": 2250.0}
_WARM_UP, _STEPS = 2, 5


def step_flops(parameters: int, layers: int, width: int, lengths: list[int]) -> float:
    """Operations of one forward and backward pass over sequences, recomputation not counted.

    6 per weight of a matrix product and token; causal attention adds 6 * S * width per token and
    layer (half of the 12 of PaLM's appendix B, arXiv 2204.02311, which counts the masked half too).
    """
    tokens = sum(lengths)
    return 6.0 * parameters * tokens + 6.0 * layers * width * sum(n * n for n in lengths)


def check_policy_step(bench: Bench) -> Figures:
    """Tokens per second of a policy step, as the trainer takes it in PPO."""
    require_memory(bench, 60)
    name = shape(bench, "1B")
    config = llama(name)
    lengths = [64] * 4 if bench.quick else [512] * 32  # 16k tokens
    e = sequences(lengths, config.vocab_size)
    step = policy_step(e, None, budget=sum(lengths) // 2, packed=True)
    require(len(step.ppo.work.micro_batches) == 2, "two micro-batches hold all tokens")
    worker = trainer(bench, name, 2, "bfloat16")
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    for _ in range(_WARM_UP + (1 if bench.quick else _STEPS)):
        synchronize(bench)
        began = time.perf_counter()
        update(worker, step, e)
        synchronize(bench)
        seconds.append(time.perf_counter() - began)
    embedding = config.vocab_size * config.hidden_size  # read, not multiplied
    weights = sum(p.numel() for p in worker.engine.module.parameters()) - embedding
    worker.unload()
    typical = statistics.median(seconds[_WARM_UP:])
    flops = step_flops(weights, config.num_hidden_layers, config.hidden_size, lengths)
    found: Figures = {
        "tokens_per_second": sum(lengths) / typical,
        "tflops": flops / typical / 1e12,
        "matmul_tflops": _matmul_tflops(bench),
    }
    if bench.cuda:
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        peak = next((p for n, p in PEAK.items() if n in torch.cuda.get_device_name()), None)
        if peak is not None:
            found |= {"mfu": found["tflops"] / peak, "mfu_aim": AIM}
    return found


def _matmul_tflops(bench: Bench) -> float:
    """The rate of large bf16 matrix products on this machine."""
    n = 256 if bench.quick else 8192
    a, b = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    torch.matmul(a, b)
    synchronize(bench)
    began = time.perf_counter()
    for _ in range(10):
        torch.matmul(a, b)
    synchronize(bench)
    return 10 * 2 * n**3 / (time.perf_counter() - began) / 1e12


CHECKS = [Check("policy step", check_policy_step, 120.0, ("deepspeed",))]

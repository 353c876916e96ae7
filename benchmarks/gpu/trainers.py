"""Checks of the policy's trainer on the device: ZeRO stages, options, and memory that moves."""

from __future__ import annotations

import math
import time
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.checks import Bench, Check, Figures, require
from benchmarks.gpu.reference import PlainLoop
from benchmarks.gpu.samples import (
    gpu_memory,
    llama,
    model_folder,
    policy_step,
    require_memory,
    sequences,
    shape,
    synchronize,
    text,
    trainer,
    update,
)
from workers.records.specs import Dtype, LoraSpec
from workers.records.training import StepStats
from workers.roles.policy import PolicyWorker

# One rank updates its weights in place; only with offloading does it run ZeRO.
SETTINGS: dict[str, dict[str, Any]] = {
    "in_place": {"stage": 1},
    **{f"zero{stage}": {"stage": stage, "offload": "optimizer"} for stage in (1, 2, 3)},
}
STEPS = 3
_LENGTHS = [37, 12, 90, 64, 5, 128, 41, 77]
_TEXTS = [33, 80, 7, 51]
# Largest difference of a loss, and of the gradient norm as a share of it.
_LIMITS: dict[Dtype, tuple[float, float]] = {"float32": (1e-5, 1e-4), "bfloat16": (1e-2, 5e-2)}


def check_stages(bench: Bench) -> Figures:
    """Weights in place and each ZeRO stage train as a plain loop in fp64 on the CPU does."""
    folder = model_folder(bench, shape(bench, "20M"))
    loop = PlainLoop(folder, torch.float64, "cpu")
    e, documents = sequences(_LENGTHS), text(_TEXTS)
    expected = [loop.step(e, documents) for _ in range(STEPS)]
    found: Figures = {}
    for dtype in _LIMITS:
        for name in SETTINGS:
            worst = _against(bench, name, dtype, expected)
            found |= {f"{name}_{dtype}_{part}": value for part, value in worst.items()}
    return found


def _against(
    bench: Bench, setting: str, dtype: Dtype, expected: list[tuple[float, float, float]]
) -> dict[str, float]:
    """Largest differences over the steps; raises ViolatedError if one is beyond its limit."""
    e, documents = sequences(_LENGTHS), text(_TEXTS)
    step = policy_step(e, documents, budget=256, packed=True)
    worker = trainer(bench, shape(bench, "20M"), dtype=dtype, **SETTINGS[setting])
    stats = [update(worker, step, e) for _ in expected]
    worker.unload()
    worst = {"ppo": 0.0, "text": 0.0, "norm": 0.0}
    for one, (ppo, of_text, norm) in zip(stats, expected, strict=True):
        apart = {
            "ppo": abs(one.loss - ppo),  # advantages have a deviation of 1, their mean is near 0
            "text": abs(one.extra["ptx_loss"] / of_text - 1),
            "norm": abs(one.grad_norm / norm - 1),
        }
        worst = {name: max(worst[name], apart[name]) for name in worst}
    loss, norm = _LIMITS[dtype]
    for name, limit in (("ppo", loss), ("text", loss), ("norm", norm)):
        require(worst[name] <= limit, f"{setting} {dtype}: {name} is {worst[name]:.2g} from the "
                f"plain loop, allowed is {limit:g}")  # fmt: skip
    return worst


def check_large_stages(bench: Bench) -> Figures:
    """A model of a billion parameters has the first loss of a plain forward pass, and trains."""
    require_memory(bench, 40)
    name = shape(bench, "1B")
    e = sequences(_LENGTHS, llama(name).vocab_size)
    with torch.no_grad():
        loop = PlainLoop(model_folder(bench, name), torch.float32, bench.device)
        plain = sum(float(loss) for loss in loop.ppo_losses(e))
    del loop
    found: Figures = {"plain_loss": plain}
    settings: list[tuple[str, Dtype]] = [
        ("in_place", "float32"), ("in_place", "bfloat16"), ("zero3", "bfloat16")
    ]  # fmt: skip
    step = policy_step(e, None, budget=1024, packed=True)
    for setting, dtype in settings:
        worker = trainer(bench, name, dtype=dtype, **SETTINGS[setting])
        stats = [update(worker, step, e) for _ in range(2)]
        worker.unload()
        apart = abs(stats[0].loss - plain)
        limit = 10 * _LIMITS[dtype][0]  # 22 layers
        require(apart <= limit, f"{setting} {dtype}: the loss is {apart:.2g} from a plain one")
        require(all(map(_applied, stats)), f"{setting} {dtype}: {stats}")
        found[f"{setting}_{dtype}_loss"] = apart
    return found


def _applied(stats: StepStats) -> bool:
    return stats.applied and math.isfinite(stats.grad_norm) and stats.grad_norm > 0


def check_rest(bench: Bench) -> Figures:
    """Optimizer state moves to the host and back: bytes, seconds, and the same bits after."""
    require_memory(bench, 40)
    e = sequences(_LENGTHS)
    step = policy_step(e, None, budget=1024, packed=True)
    worker = trainer(bench, shape(bench, "1B"), 2, "bfloat16", rest="state")
    update(worker, step, e)
    before, full = _sums(worker), gpu_memory(bench)
    out = _seconds(bench, worker.rest)
    freed = full - gpu_memory(bench)
    require(_sums(worker) == before, "the state has other bits in host memory")
    first = next(p for p in worker.engine.module.parameters() if p.requires_grad)
    back = _seconds(bench, lambda: worker.engine.master(first))
    require(_sums(worker) == before, "the state has other bits after its return")
    parameters = sum(p.numel() for p in worker.engine.module.parameters())
    found: Figures = {"parameters": parameters, "out_seconds": out, "back_seconds": back}
    if bench.cuda:
        # Master weights and two moments, 4 bytes each; the rest is rounding and alignment.
        require(freed >= 0.95 * 12 * parameters, f"only {freed:,} bytes left the GPU")
        require(gpu_memory(bench) >= full - (64 << 20), "the state did not return to the GPU")
        found |= {"freed_gib": freed / 2**30}
    require(_applied(update(worker, step, e)), "no step is applied after the return")
    worker.unload()
    return found


def _sums(worker: PolicyWorker) -> list[int]:
    """One sum of the bits of each master and moment."""
    tensors, _, _ = worker.engine.training_state()
    return [int(t.contiguous().view(torch.int32).sum(dtype=torch.int64)) for t in tensors.values()]


def _seconds(bench: Bench, work: Any) -> float:
    synchronize(bench)
    began = time.perf_counter()
    work()
    synchronize(bench)
    return time.perf_counter() - began


@lru_cache(maxsize=1)
def _plain_step(bench: Bench) -> StepStats:
    """One step without any option."""
    return _option(bench, "plain")[0]


def _option(bench: Bench, name: str, **settings: Any) -> tuple[StepStats, dict[str, Tensor]]:
    """One step of a trainer in bf16, and its weights after it."""
    e = sequences(_LENGTHS)
    step = policy_step(e, None, budget=256, packed=True)
    worker = trainer(bench, shape(bench, "20M"), 2, "bfloat16", **settings)
    stats = update(worker, step, e)
    require(_applied(stats), f"{name}: {stats}")
    weights = {n: p.detach().cpu().clone() for n, p in worker.engine.module.named_parameters()}
    worker.unload()
    return stats, weights


def _same_step(bench: Bench, name: str, limit: float, **settings: Any) -> Figures:
    plain = _plain_step(bench)
    stats, _ = _option(bench, name, **settings)
    loss, norm = abs(stats.loss - plain.loss), abs(stats.grad_norm / plain.grad_norm - 1)
    require(
        max(loss, norm) <= limit, f"loss {loss:.2g}, gradient norm {norm:.2g} from a plain step"
    )
    return {"loss": loss, "norm": norm}


def check_checkpointing(bench: Bench) -> Figures:
    """A step with gradient checkpointing is that without it."""
    return _same_step(bench, "checkpointing", 1e-3, spec={"gradient_checkpointing": True})


def check_offload(bench: Bench) -> Figures:
    """A step with the optimizer on the host is that on the device."""
    return _same_step(bench, "offload", 1e-3, offload="optimizer")


def check_lora(bench: Bench) -> Figures:
    """A step with adapters begins at the plain loss and moves adapters alone."""
    plain = _plain_step(bench)
    lora = LoraSpec(8, 16.0, 0.0, ("all-linear",))
    stats, weights = _option(bench, "lora", spec={"lora": lora})
    moved = [w for n, w in weights.items() if "lora_B" in n and bool(w.any())]
    apart = abs(stats.loss - plain.loss)
    require(apart <= 1e-3, f"the first loss is {apart:.2g} from that without adapters")
    require(len(moved) > 0, "no adapter has moved")
    return {"loss": apart, "adapters_moved": len(moved)}


_DEEPSPEED = ("deepspeed",)
CHECKS = [
    Check("trainer against fp64", check_stages, 150.0, _DEEPSPEED),
    Check("trainer at a billion", check_large_stages, 150.0, _DEEPSPEED),
    Check("state rests on the host", check_rest, 90.0, _DEEPSPEED),
    Check("gradient checkpointing", check_checkpointing, 60.0, _DEEPSPEED),
    Check("optimizer on the host", check_offload, 60.0, _DEEPSPEED),
    Check("adapters", check_lora, 60.0, ("deepspeed", "peft")),
]

"""Checks of the transformers engine: its log-probabilities, and weights that it receives."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from benchmarks.gpu.checks import Bench, Check, Figures, ViolatedError, require
from benchmarks.gpu.samples import (
    VOCABULARY,
    model_folder,
    policy_step,
    sequences,
    shape,
    trainer,
    update,
)
from benchmarks.gpu.trainers import SETTINGS
from workers.generation.engine import Sample, pack
from workers.generation.transformers_engine import TransformersEngine
from workers.records.generation import GenerationRequest, RolloutBatch, Sampling
from workers.records.specs import Dtype, FrozenModelSpec, RolloutSpec
from workers.records.training import TokenField, Work
from workers.roles.reference import ReferenceWorker

# Nats between an engine's log-probability and that of the trainers' forward pass.
_LIMITS: dict[Dtype, float] = {"float32": 1e-3, "bfloat16": 0.3}


def _engine(bench: Bench, folder: Path, dtype: Dtype) -> TransformersEngine:
    return TransformersEngine(
        RolloutSpec(
            checkpoint=str(folder), engine="transformers", dtype=dtype, device=bench.device,
            max_prompt_tokens=32, max_response_tokens=64, max_concurrent_sequences=64,
            kv_cache_bytes=0, gpu_memory_fraction=0.5, tensor_parallel_size=1,
            prefix_caching=False, enforce_eager=True, seed=0, eos_token_id=2,
        )
    )  # fmt: skip


def _rollouts(bench: Bench, engine: TransformersEngine) -> RolloutBatch:
    """Sequences of a fresh engine: prompts of 4 to 19 random tokens."""
    count, most = (8, 8) if bench.quick else (64, 64)
    rng = np.random.default_rng(3)
    prompts = [tuple(rng.integers(3, VOCABULARY, 4 + i % 16).tolist()) for i in range(count)]
    numbers = engine.add([Sample(p, i) for i, p in enumerate(prompts)], Sampling(1.0, most))
    done = {}
    while engine.running:
        done |= dict(engine.step())
    requests = [GenerationRequest(i, p, (i,), (i,)) for i, p in enumerate(prompts)]
    return pack(requests, [done[n] for n in numbers], 0)


def _largest(found: TokenField, batch: RolloutBatch) -> float:
    """Nats between two sides at the tokens of the same sequences."""
    require(found.ids.tolist() == batch.ids.tolist(), "sequences are in another order")
    apart = found.values.values.astype(np.float64) - batch.logprobs.values.astype(np.float64)
    return float(np.abs(apart).max())


def check_parity(bench: Bench) -> Figures:
    """Sampled tokens have the log-probabilities of the trainers' forward pass."""
    folder = model_folder(bench, shape(bench, "20M"))
    found: Figures = {}
    for dtype, limit in _LIMITS.items():
        began = time.monotonic()
        batch = _rollouts(bench, _engine(bench, folder, dtype))
        seconds = time.monotonic() - began
        reference = ReferenceWorker(0)
        reference.load(FrozenModelSpec(str(folder), dtype, bench.device, 1, 4096, packed=True))
        apart = _largest(reference.logprobs(Work((batch.ids,)), [batch], 1.0), batch)
        require(apart <= limit, f"{dtype}: {apart:.2g} nats apart, allowed are {limit:g}")
        found |= {f"{dtype}_nats": apart, f"{dtype}_seconds": seconds, "sequences": len(batch)}
    return found


def check_weight_sync(bench: Bench) -> Figures:
    """An engine that received trained weights has the trainer's log-probabilities, not its old."""
    folder = model_folder(bench, shape(bench, "20M"))
    e = sequences([48] * 8)
    found: Figures = {}
    settings: list[tuple[str, Dtype]] = [("in_place", "bfloat16"), ("zero3", "float32")]
    for setting, dtype in settings:
        worker = trainer(bench, shape(bench, "20M"), dtype=dtype, **SETTINGS[setting])
        engine = _engine(bench, folder, dtype)
        step = policy_step(e, None, budget=512, packed=True)
        for _ in range(3):
            update(worker, step, e)
        offer = worker.publish_weights(1, "shm")
        if offer is None:
            raise ViolatedError("the only rank publishes nothing")
        require(engine.receive(offer) == offer.checksum, "the bytes differ from those sent")
        batch = _rollouts(bench, engine)
        work = Work((batch.ids,))
        apart = _largest(worker.logprobs(work, [batch], 1.0), batch)
        limit = _LIMITS[dtype]
        require(apart <= limit, f"{setting} {dtype}: {apart:.2g} nats apart after a sync")
        reference = ReferenceWorker(0)
        reference.load(FrozenModelSpec(str(folder), dtype, bench.device, 1, 4096, packed=True))
        moved = _largest(reference.logprobs(work, [batch], 1.0), batch)
        require(moved > 2 * apart, f"the old weights are as near ({moved:.2g} nats)")
        engine.close()
        worker.unload()
        found |= {f"{setting}_nats": apart, f"{setting}_nats_to_old_weights": moved}
    return found


CHECKS = [
    Check("engine against reference", check_parity, 90.0),
    Check("weights to an engine", check_weight_sync, 90.0, ("deepspeed",)),
]

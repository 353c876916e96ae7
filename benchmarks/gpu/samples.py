"""Models, sequences and trainers for the checks."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.gpu.checks import Bench, CannotRunError
from orchestrator.batching.training_batches import StepPlan, critic_steps
from workers.records.arrays import Ragged
from workers.records.processes import RankAddress
from workers.records.specs import Dtype, GroupSpec, OptimizerSpec, PolicyLossSpec, TrainModelSpec
from workers.records.training import (
    ExperienceBatch,
    PolicyStep,
    StepStats,
    SupervisedStep,
    TokenBatch,
)
from workers.roles.policy import PolicyWorker

VOCABULARY = 4096
SECONDS = 60.0  # timeout of collectives
OPTIMIZER = OptimizerSpec(1e-3, (0.9, 0.95), 1e-5, 0.1, 1.0, "constant", 0, 0.1, 1)
LOSS = PolicyLossSpec(0.2, 1.0, 0.0, 1.0, ptx_coefficient=0.5)

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96,
             "num_attention_heads": 2, "num_key_value_heads": 1},
    "20M": {"hidden_size": 384, "num_hidden_layers": 8, "intermediate_size": 1152,
            "num_attention_heads": 6, "num_key_value_heads": 2},
    "wide": {"hidden_size": 2048, "num_hidden_layers": 2, "intermediate_size": 5632,
             "num_attention_heads": 16, "num_key_value_heads": 4},
    "1B": {"hidden_size": 2048, "num_hidden_layers": 22, "intermediate_size": 5632,
           "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32_768},
}  # fmt: skip


def shape(bench: Bench, name: str) -> str:
    """The shape to use: a dry run uses the smallest for all."""
    return "tiny" if bench.quick else name


def model_folder(bench: Bench, name: str) -> Path:
    """The folder of a model with random weights, made once for all checks."""
    folder = bench.folder / f"model_{name}"
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        with torch.device(bench.device):
            model: Any = LlamaForCausalLM(llama(name))
        # Half of the bytes of fp32, for the disk's sake; every check rounds from the same numbers.
        model.to(torch.bfloat16).save_pretrained(folder)
        del model
        free(bench)
    return folder


def free(bench: Bench) -> None:
    """Give memory that is no longer used back to the GPU, for other processes too."""
    gc.collect()
    if bench.cuda:
        torch.cuda.empty_cache()


def require_memory(bench: Bench, gib: int) -> None:
    """Raise CannotRunError on a GPU that is too small for a check of a billion parameters."""
    if bench.cuda and not bench.quick:
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        if total < gib:
            raise CannotRunError(f"needs {gib} GiB of GPU memory, this GPU has {total:.0f}")


def llama(name: str) -> LlamaConfig:
    """Weights whose products have half the size of their input at every width.

    So predictions differ from token to token, and no attention is so sharp that bf16 misses it.
    """
    settings: dict[str, Any] = {"vocab_size": VOCABULARY, **SHAPES[name]}
    deviation = 0.5 / SHAPES[name]["hidden_size"] ** 0.5
    return LlamaConfig(
        max_position_embeddings=32_768, initializer_range=deviation, tie_word_embeddings=False,
        **settings,
    )  # fmt: skip


def sequences(lengths: list[int], vocabulary: int = VOCABULARY) -> ExperienceBatch:
    """Sequences of random tokens, a quarter of each its prompt, with random advantages."""
    rng = np.random.default_rng(0)
    whole = np.array(lengths, np.int64)
    prompts = np.maximum(whole // 4, 1)
    offsets = np.concatenate([[0], (whole - prompts).cumsum()])

    def numbers(mean: float, deviation: float) -> Ragged:
        return Ragged(rng.normal(mean, deviation, offsets[-1]).astype(np.float32), offsets)

    old = numbers(-np.log(vocabulary), 0.1)
    return ExperienceBatch(
        np.arange(len(whole)),
        Ragged.from_rows([rng.integers(3, vocabulary, n) for n in whole], np.int32),
        prompts, old, old, numbers(0.0, 1.0), None, None,
    )  # fmt: skip


def text(lengths: list[int], vocabulary: int = VOCABULARY) -> TokenBatch:
    """Documents of random tokens, all of them targets."""
    rng = np.random.default_rng(1)
    tokens = Ragged.from_rows([rng.integers(3, vocabulary, n) for n in lengths], np.int32)
    return TokenBatch(tokens, Ragged(np.ones(len(tokens.values), np.bool_), tokens.offsets))


def policy_step(
    e: ExperienceBatch, documents: TokenBatch | None, *, budget: int, packed: bool
) -> PolicyStep:
    """One optimizer step as the driver plans it for one rank."""
    plan = StepPlan(1, budget, len(e.ids), 1, (0,), packed=packed)
    lengths = e.tokens.lengths
    ((step,),) = critic_steps(e.ids, lengths - e.prompt_lengths, lengths, plan)
    ptx = None
    if documents is not None:
        halves = [list(range(len(documents)))[i::2] for i in (0, 1)]
        parts = tuple(documents.select(rows) for rows in halves)
        ptx = SupervisedStep(parts, documents.target_count)
    return PolicyStep(step, ptx)


def joined(bench: Bench, stage: int, dtype: Dtype, **group: Any) -> PolicyWorker:
    """The policy's trainer, one rank, in a process group of this process alone."""
    worker = PolicyWorker(0)
    spec = GroupSpec(stage, dtype, bench.device, threads(bench), SECONDS, 64 << 20, 0, **group)
    worker.join(RankAddress(0, 1, *worker.address()), spec)
    return worker


def threads(bench: Bench) -> int:
    """Of a trainer on the CPU; on a GPU they only feed it."""
    return 1 if bench.quick else 4


def trainer(
    bench: Bench, name: str, stage: int, dtype: Dtype, *, packed: bool = True,
    spec: dict[str, Any] | None = None, **group: Any,
) -> PolicyWorker:  # fmt: skip
    """The policy's trainer with a loaded model."""
    worker = joined(bench, stage, dtype, **group)
    model = TrainModelSpec(str(model_folder(bench, name)), OPTIMIZER, packed=packed)
    worker.load(replace(model, **(spec or {})))
    return worker


def update(worker: PolicyWorker, step: PolicyStep, e: ExperienceBatch) -> StepStats:
    """One optimizer step."""
    (stats,) = worker.update([step], [e], LOSS)
    return stats


def synchronize(bench: Bench) -> None:
    """Wait for the GPU, so that times are those of the work."""
    if bench.cuda:
        torch.cuda.synchronize()


def gpu_memory(bench: Bench) -> int:
    """Bytes that torch has allocated on the GPU; 0 on a CPU."""
    return torch.cuda.memory_allocated() if bench.cuda else 0

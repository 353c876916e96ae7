"""Rank 0 of eight, run by `test_collectives`: its collectives, without its seven peers.

torch's process group `fake` does nothing and answers at once, so every call that a rank makes can
be recorded. What it computes means nothing, since gathered weights are never filled in.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from orchestrator.batching.training_batches import StepPlan, critic_steps
from workers.records.arrays import Ragged
from workers.records.processes import RankAddress
from workers.records.specs import GroupSpec, OptimizerSpec, PolicyLossSpec, TrainModelSpec
from workers.records.training import ExperienceBatch, PolicyStep
from workers.roles.policy import PolicyWorker

RANKS = 8
# With 16 tokens per pass, ranks 2 to 7 have two passes; 0 and 1 have one long sequence each.
LENGTHS = [30, 28, 12, 12, 12, 12, 12, 12, 11, 11, 11, 11, 11, 11]
SHARES = {"full": 2, "dummy": 0}  # ranks: one with two passes, one whose second pass is empty
BUCKET_BYTES = 64 << 10
OPTIMIZER = OptimizerSpec(1e-3, (0.9, 0.95), 1e-5, 0.1, 1.0, "constant", 0, 0.1, 1)


class Recorder(TorchDispatchMode):
    """The collectives that are called, and the elements of the largest tensor of each."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None):
        if function.namespace == "c10d":
            sizes = [leaf.numel() for leaf in tree_leaves(args) if torch.is_tensor(leaf)]
            self.calls.append((function._opname, max(sizes, default=0)))
        return function(*args, **(kwargs or {}))


def recorded(work: Callable[[], object]) -> list[tuple[str, int]]:
    with Recorder() as recorder:
        work()
    return recorder.calls


def experience() -> ExperienceBatch:
    rng = np.random.default_rng(0)
    prompts = np.full(len(LENGTHS), 2)
    offsets = np.concatenate([[0], (np.array(LENGTHS) - 2).cumsum()])
    field = Ragged(rng.normal(-4, 1, offsets[-1]).astype(np.float32), offsets)
    tokens = Ragged.from_rows([rng.integers(3, 256, n) for n in LENGTHS], np.int32)
    return ExperienceBatch(
        np.arange(len(LENGTHS)), tokens, prompts, field, field, field, None, None
    )


def planned() -> list[PolicyStep]:
    """Each rank's share of one step, as the driver plans it."""
    lengths = np.array(LENGTHS)
    plan = StepPlan(RANKS, 16, len(lengths), 1, (0,), packed=True)
    ranks = critic_steps(np.arange(len(lengths)), lengths - 2, lengths, plan)
    return [PolicyStep(step) for (step,) in ranks]


def calls(stage: int, dtype: Any, folder: Path) -> dict[str, Any]:
    """The collectives of one step per share, and those of a weight sync."""
    worker = PolicyWorker(0)
    where = RankAddress(0, RANKS, "127.0.0.1", 1)
    worker.join(where, GroupSpec(stage, dtype, "cpu", 1, 60.0, BUCKET_BYTES, 0))
    worker.load(TrainModelSpec(str(folder), OPTIMIZER, packed=True))
    e, loss = experience(), PolicyLossSpec(0.2, 1.0, 0.0, 1.0)
    shares = {name: planned()[rank] for name, rank in SHARES.items()}
    for _ in range(2):  # ZeRO-3 records the order of the modules in the first step, and checks it
        worker.update([shares["full"]], [e], loss)
    return {
        name: recorded(lambda step=step: worker.update([step], [e], loss))
        for name, step in shares.items()
    } | {"sync": recorded(lambda: list(worker._weights()))}


def main() -> None:
    folder = Path(sys.argv[1])
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    found = {
        f"{stage} {dtype}": calls(stage, dtype, folder / "model")
        for stage in (1, 2, 3)
        for dtype in ("float32", "bfloat16")
    }
    (folder / "calls.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

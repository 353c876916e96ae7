"""The work that `test_trainer_resume` gives to ranks; run as a program, one process a rank.

First it trains without a break and keeps a snapshot of every step; then, in the same or in a fresh
process, it goes on from some of them.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import trainer_ranks as ranks

from workers.records.processes import RankAddress
from workers.records.specs import TrainModelSpec
from workers.records.training import StepWork
from workers.roles.critic import CriticWorker
from workers.roles.policy import PolicyWorker
from workers.training.trainer import Trainer

STEPS = 4
ZERO_STAGES = (1, 2, 3)
Step = Callable[[Any, int, int], Any]  # worker, rank, world -> statistics


def _sft(worker: PolicyWorker, rank: int, world: int) -> Any:
    return worker.train_supervised(ranks.supervised(rank, world))


def _ppo_ptx(worker: PolicyWorker, rank: int, world: int) -> Any:
    return worker.update([ranks.policy_step(rank, world)], ranks.shard(rank, world), ranks.LOSS)


def _reward_model(worker: CriticWorker, rank: int, world: int) -> Any:
    return worker.train_rankings(ranks.ranking_step(rank, world))


def _value(worker: CriticWorker, rank: int, world: int) -> Any:
    tokens = len(ranks.experience().values.values)
    step = StepWork(ranks.work(rank, world), tokens, 5)
    return worker.update([step], ranks.shard(rank, world), 0.2)


def _jobs(folder: Path) -> dict[str, tuple[type[Trainer], TrainModelSpec, Step]]:
    base = TrainModelSpec(str(folder / "base"), ranks.OPTIMIZER)
    return {
        "sft": (PolicyWorker, base, _sft),
        "ppo_ptx": (PolicyWorker, replace(base, ema_decay=0.5), _ppo_ptx),
        "reward_model": (CriticWorker, replace(base, head="random"), _reward_model),
        "value": (CriticWorker, replace(base, head="zero"), _value),
    }


def weights(worker: Trainer) -> dict[str, bytes]:
    """Whole weights, and the average where there is one, byte for byte."""
    found = {n: w.numpy().tobytes() for bucket in worker._weights() for n, w in bucket}
    if worker._average is not None:
        found |= {f"average {n}": w.numpy().tobytes() for n, w in worker._average.tensors.items()}
    return found


def _first(
    worker: Trainer, spec: TrainModelSpec, step: Step, where: RankAddress, at: Path
) -> dict[str, Any]:
    worker.load(spec)
    stats, records, states = [], [], []
    for k in range(STEPS):
        stats.append(step(worker, where.rank, where.world_size))
        states.append(weights(worker))
        (at / str(k + 1)).mkdir(parents=True, exist_ok=True)
        if k:  # asked for after another step: training went on while a thread wrote
            records.append(worker.written())
        worker.snapshot(str(at / str(k + 1)))
    worker.save(str(at / "model"), spec.checkpoint)
    worker.load(spec)  # while a thread writes: rejection sampling starts again from SFT
    records.append(worker.written())
    return {"stats": stats, "records": records, "states": states}


def _second(
    worker: Trainer, spec: TrainModelSpec, step: Step, where: RankAddress, at: Path, k: int
) -> dict[str, Any]:
    worker.load(spec)
    worker.restore(str(at / str(k)))
    restored = weights(worker)
    stats = [step(worker, where.rank, where.world_size) for _ in range(k, STEPS)]
    return {"restored": restored, "stats": stats, "end": weights(worker)}


def main() -> None:
    rank, world, port = map(int, sys.argv[1:4])
    folder, plan = Path(sys.argv[4]), json.loads(sys.argv[5])
    where = RankAddress(rank, world, "127.0.0.1", port)
    out: dict[Any, Any] = {}
    for stage in ZERO_STAGES:
        for name, (kind, spec, step) in _jobs(folder).items():
            if name not in plan["jobs"]:
                continue
            worker = kind(rank)
            worker.join(where, ranks.group(stage))
            at = folder / plan["folders"][str(stage)] / name
            if plan["first"]:
                out["first", stage, name] = _first(worker, spec, step, where, at)
            for k in plan["from"]:
                out[k, stage, name] = _second(worker, spec, step, where, at, k)
            worker.unload()
    (folder / f"{plan['name']}-{rank}.pkl").write_bytes(pickle.dumps(out))


if __name__ == "__main__":
    main()

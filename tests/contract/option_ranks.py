"""The work that `test_training_options` gives to ranks; run as a program, one process a rank."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import trainer_ranks as work

from workers.records.processes import RankAddress
from workers.records.specs import LoraSpec, OptimizerSpec, TrainModelSpec
from workers.records.training import SupervisedStep
from workers.roles.critic import CriticWorker
from workers.roles.policy import PolicyWorker
from workers.weights.transfer import WeightReceiver
from workers.weights.transport import Link

LORA = LoraSpec(rank=3, alpha=12.0, dropout=0.0, target=("all-linear",))
FREEZE = ("embeddings", "model.layers.0.*")
# Adam's first steps move every weight by the rate: a twelfth of what bf16 resolves at .1.
TINY = OptimizerSpec(4e-5, (0.9, 0.95), 1e-8, 0.0, 1.0, "constant", 0, 0.1, 100)
TINY_STEPS = 12


class Bench:
    """Loads one worker after the other in this process and trains it a few steps.

    Stage 0 stands for a single rank, which divides nothing unless it offloads.
    """

    def __init__(self, rank: int, world: int, port: int, stage: int, folder: Path) -> None:
        self.rank, self.world, self.stage, self.folder = rank, world, stage, folder
        self.where = RankAddress(rank, world, "127.0.0.1", port)
        self.group = work.group(stage or 1)

    def policy(self, group: dict[str, Any] | None = None, **options: Any) -> PolicyWorker:
        worker = PolicyWorker(self.rank)
        worker.join(self.where, dataclasses.replace(self.group, **(group or {})))
        spec = TrainModelSpec(str(self.folder / "base"), work.OPTIMIZER, **work.LEAN)
        worker.load(dataclasses.replace(spec, **options))
        return worker

    def losses(self, worker: PolicyWorker, steps: int = 3) -> list[float]:
        step = work.supervised(self.rank, self.world)
        return [worker.train_supervised(step).loss for _ in range(steps)]

    def save(self, worker: Any, name: str) -> None:
        worker.save(str(self.folder / f"{name}-{self.stage}"), str(self.folder / "base"))
        worker.unload()

    def published(self, worker: PolicyWorker) -> dict[str, np.ndarray]:
        offer = worker.publish_weights(1, "shm")
        if offer is None:
            return {}
        buckets = WeightReceiver(Link(worker.engine.device, 60.0)).receive(offer)
        return {name: weight.clone().numpy() for bucket in buckets for name, weight in bucket}

    def trained(self, name: str, **options: Any) -> list[float]:
        worker = self.policy(**options)
        losses = self.losses(worker)
        self.save(worker, name)
        return losses

    def row_by_row(self) -> list[float]:
        """The step of `trained`, one row a micro-batch; the other rank runs dummies at the end."""
        step, worker = work.supervised(self.rank, self.world), self.policy()
        rows = [batch.select([i]) for batch in step.micro_batches for i in range(len(batch))]
        rows += [rows[0].select([])] * (7 - len(rows))
        losses = [worker.train_supervised(SupervisedStep(tuple(rows), step.tokens)) for _ in "123"]
        self.save(worker, "rows")
        return [stats.loss for stats in losses]

    def bf16(self) -> dict[str, Any]:
        worker = self.policy({"dtype": "bfloat16"})
        out: dict[str, Any] = {"losses": self.losses(worker)}
        parameters = dict(worker.engine.module.named_parameters())
        norm = parameters["model.norm.weight"]
        out["working"] = str(norm.dtype)
        out["master"] = str(worker.engine.master(norm).dtype)
        worker.load(TrainModelSpec(str(self.folder / "base"), TINY))
        self.losses(worker, 1)
        self.save(worker, "tiny-one")
        worker.load(TrainModelSpec(str(self.folder / "base"), TINY))
        self.losses(worker, TINY_STEPS)
        self.save(worker, "tiny-many")
        return out

    def lora(self) -> dict[str, Any]:
        worker = self.policy(lora=LORA)
        start = worker.evaluate_supervised(work.supervised(self.rank, self.world))
        out: dict[str, Any] = {"start": start.nll, "losses": self.losses(worker)}
        out["published"] = self.published(worker)
        live = worker.engine.module.named_parameters()
        out["state"] = sum(getattr(p, "ds_numel", p.numel()) for _, p in live if p.requires_grad)
        out["end"] = worker.evaluate_supervised(work.supervised(self.rank, self.world)).nll
        self.save(worker, "lora")
        return out

    def averaged_lora(self) -> None:
        worker = self.policy(lora=LORA, ema_decay=0.5)
        self.losses(worker)
        self.save(worker, "lora-ema")

    def lora_critic(self) -> dict[str, Any]:
        worker = CriticWorker(self.rank)
        worker.join(self.where, self.group)
        base = str(self.folder / "base")
        worker.load(TrainModelSpec(base, work.OPTIMIZER, head="random", lora=LORA))
        step = work.ranking_step(self.rank, self.world)
        out: dict[str, Any] = {"losses": [worker.train_rankings(step).loss for _ in range(3)]}
        worker.shift_bias(0.5)
        out["scores"] = worker.score(work.texts())
        self.save(worker, "lora-reward")
        return out

    def dropout(self) -> list[float]:
        """The first loss of two loads in a row."""
        worker = self.policy(dropout=0.3)
        first = self.losses(worker, 1)
        base = str(self.folder / "base")
        worker.load(TrainModelSpec(base, work.OPTIMIZER, dropout=0.3, **work.LEAN))
        second = self.losses(worker, 1)
        self.save(worker, "dropout")
        return [*first, *second]

    def rest(self) -> dict[str, Any]:
        """The steps of `trained`, each after a rest, and what is kept and sent from the rest."""
        worker = self.policy({"rest": "state"})
        losses: list[float] = []
        for _ in range(3):
            worker.rest()
            worker.rest()
            losses += self.losses(worker, 1)
        awake = self.state(worker)
        worker.rest()
        resting, published = self.state(worker), self.published(worker)
        self.save(worker, "rest")
        return {"losses": losses, "awake": awake, "resting": resting, "published": published}

    def state(self, worker: PolicyWorker) -> dict[str, tuple[int, np.ndarray]]:
        """Where masters and moments lie, and what they are."""
        tensors, _, _ = worker.engine.training_state()
        return {name: (t.data_ptr(), t.clone().numpy()) for name, t in tensors.items()}

    def rested_critic(self) -> list[np.ndarray]:
        """Scores before and after the bias was shifted and a step taken, each from a rest."""
        worker = CriticWorker(self.rank)
        worker.join(self.where, dataclasses.replace(self.group, rest="state"))
        still = dataclasses.replace(work.OPTIMIZER, learning_rate=0.0)
        worker.load(TrainModelSpec(str(self.folder / "base"), still, head="random"))
        scores = [worker.score(work.texts())]
        worker.rest()
        worker.shift_bias(0.5)
        worker.rest()
        worker.train_rankings(work.ranking_step(self.rank, self.world))  # masters are written back
        worker.rest()
        scores.append(worker.score(work.texts()))
        worker.unload()
        return scores

    def refused_rest(self, dtype: str) -> str:
        """The type of error with which deepspeed refuses to move the optimizer's state."""
        worker = self.policy({"rest": "state", "dtype": dtype})
        try:
            worker.rest()
        except (AssertionError, AttributeError) as error:
            return type(error).__name__
        finally:
            worker.unload()
        return ""

    def resumed(self, writer: str, reader: str) -> tuple[Any, ...]:
        """Snapshot after two steps, read by a trainer with another offload; state and last step."""
        at = self.folder / f"from-{writer}"
        at.mkdir()
        one = self.policy({"offload": writer})
        self.losses(one, 2)
        one.snapshot(str(at))
        one.written()
        kept, loss = self.state(one), self.losses(one, 1)
        self.save(one, f"from-{writer}")
        two = self.policy({"offload": reader})
        two.restore(str(at))
        found, again = self.state(two), self.losses(two, 1)
        self.save(two, f"to-{reader}")
        return kept, found, loss, again

    def run(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "plain": self.trained("plain"),
            "freeze": self.trained("freeze", freeze=FREEZE),
            "offload": self.trained("offload", group={"offload": "optimizer"}),
            "bf16": self.bf16(),
            "lora": self.lora(),
        }
        if self.stage == 0:
            out["to zero"] = self.resumed("none", "optimizer")
            out["from zero"] = self.resumed("optimizer", "none")
        if self.stage < 3:
            out["rest"] = self.rest()
            out["rested_critic"] = self.rested_critic()
        out["refused_rest"] = {d: self.refused_rest(d) for d in ("float32", "bfloat16")}
        if self.stage == 1:  # what does not depend on how weights are divided
            out["checkpointing"] = self.trained("checkpointing", gradient_checkpointing=True)
            out["rows"] = self.row_by_row()
            out["dropout"] = self.dropout()
        if self.stage == 3:  # what is hardest when weights are
            out["offload_all"] = self.trained("offload_all", group={"offload": "parameters"})
            out["lora_critic"] = self.lora_critic()
            self.averaged_lora()
        return out


def main() -> None:
    rank, world, port, folder = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    out = {
        stage: Bench(rank, world, port, stage, Path(folder)).run()
        for stage in json.loads(sys.argv[5])
    }
    (Path(folder) / f"options-{world}-{rank}.pkl").write_bytes(pickle.dumps(out))


if __name__ == "__main__":
    main()

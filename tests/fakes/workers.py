"""The workers, over toy models: only what touches an engine, a file or a process is another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fakes.engines import Ring, ToyGeneration, ToyPasses, ToyTraining
from fakes.hub import Hub
from fakes.toy import ToyPolicy, ToyScalar
from workers.generation.pool import Pool
from workers.records.arrays import IntArray, Ragged
from workers.records.environment import Ask, Told
from workers.records.generation import RolloutBatch
from workers.records.processes import FileRecord, RankAddress, RoleInfo
from workers.records.specs import (
    EnvironmentSpec,
    FrozenModelSpec,
    GroupSpec,
    RewardSpec,
    RolloutSpec,
    TrainModelSpec,
)
from workers.records.training import TokenField, Work
from workers.records.weights import GroupAddress, WeightOffer, WeightReceipt
from workers.roles.critic import CriticWorker
from workers.roles.environment import EnvironmentWorker
from workers.roles.policy import PolicyWorker
from workers.roles.reference import ReferenceWorker
from workers.roles.reward import RewardWorker, _Loaded, _Term
from workers.roles.rollout import ADMITTED, EMPTY, RolloutWorker
from workers.scorers.source import Batch, Scored
from workers.training.trainer import Trainer
from workers.weights.transport import find_transport


def info(role: str, rank: int) -> RoleInfo:
    return RoleInfo(role, rank, 1, "here", "cpu")


class FakeRolloutWorker(RolloutWorker):
    def __init__(self, rank: int, hub: Hub, ring: Ring) -> None:
        super().__init__(rank)
        self._hub, self._last = hub, rank == ring.size - 1

    def prepare(self, engine: str) -> None:
        pass

    def start(self, spec: RolloutSpec, version: int) -> RoleInfo:
        self.close()
        model = ToyPolicy.load(spec.checkpoint)
        self._pool = Pool(ToyGeneration(model, spec.eos_token_id, self._hub.wire))
        self._spec, self._version, self._status = spec, version, ADMITTED
        shapes = {model.meta().name: model.meta().shape}
        self._folder: Any = SimpleNamespace(vocabulary=len(model.weights), shapes=shapes)
        return info("rollout", self.rank)

    def load_checkpoint(self, path: str, version: int) -> WeightReceipt:
        found = ToyPolicy.load(path)
        self._status, self._hub.wire[version] = EMPTY, found.weights
        offer = WeightOffer(version, (found.meta(),), 8, "shm", checksum=found.checksum())
        receipt = super().receive_weights(offer)
        self.admit(version)
        return receipt

    def receive_weights(self, offer: WeightOffer) -> WeightReceipt:
        receipt = super().receive_weights(offer)
        broken = self._hub.faults.wrong_checksum and self._last
        return replace(receipt, checksum="broken") if broken else receipt

    def probe(self, *given: Any) -> RolloutBatch:
        batch = super().probe(*given)
        shifted = (batch.logprobs.values + self._hub.faults.parity_offset).astype(np.float32)
        return replace(batch, logprobs=Ragged(shifted, batch.logprobs.offsets))


class FakeRewardWorker(RewardWorker):
    def __init__(self, rank: int, hub: Hub, _: Ring) -> None:
        super().__init__(rank)
        self._hub = hub

    def load(self, spec: RewardSpec) -> RoleInfo:
        assert spec.model is not None, "the fake has no functions"
        model = ToyScalar.load(spec.model.checkpoint, "keep")

        def score(batch: Batch) -> Scored:
            rows = batch.rollouts.tokens.rows()
            values = [float(model.prefix_values(row)[-1].detach()) for row in rows]
            reasons = [self._hub.faults.failed_rewards(int(i)) for i in batch.rollouts.ids]
            kept = [np.nan if r else v for v, r in zip(values, reasons, strict=True)]
            return Scored(np.array(kept, np.float32), reasons)

        self._loaded = _Loaded(
            (_Term(spec.terms[0], score, nullcontext()),), spec.normalised, "", None
        )
        return info("reward", self.rank)


class FakeReferenceWorker(ReferenceWorker):
    def __init__(self, rank: int, _: Hub, __: Ring) -> None:
        super().__init__(rank)

    def load(self, spec: FrozenModelSpec) -> RoleInfo:
        passes = ToyPasses(ToyPolicy.load(spec.checkpoint))
        self._model: Any = SimpleNamespace(passes=passes, device="cpu", budget=10_000)
        return info("reference", self.rank)


class FakeTrainer(Trainer):
    """One rank; the real losses, and a toy engine."""

    def __init__(self, rank: int, hub: Hub, ring: Ring) -> None:
        super().__init__(rank)
        self._hub, self._ring = hub, ring

    def address(self) -> tuple[str, int]:
        return "here", 1

    def join(self, where: RankAddress, spec: GroupSpec) -> RoleInfo:
        self._where, self._group = where, spec
        return info(self.role, self.rank)

    def load(self, spec: TrainModelSpec) -> None:
        self._spec = spec
        self._hold(self._read(spec.checkpoint, spec.head))

    def _hold(self, model: Any) -> None:
        self._engine: Any = ToyTraining(model, self.rank, self._ring)

    def _read(self, path: str, head: str) -> Any:
        raise NotImplementedError

    def save(self, path: str, tokenizer_from: str) -> None:
        if self.rank == 0:
            self.engine.model.save(path)

    def snapshot(self, folder: str) -> None:
        self._snapshot = Path(folder) / f"{self.role}.{self.rank}"
        self.engine.model.save(self._snapshot)

    def written(self) -> FileRecord:
        file = self._snapshot / "model.safetensors"
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        return FileRecord(f"{self._snapshot.name}/{file.name}", len(data), digest)

    def restore(self, folder: str) -> None:
        self._hold(self._read(f"{folder}/{self.role}.0", "keep"))


class FakePolicyWorker(FakeTrainer, PolicyWorker):
    def _read(self, path: str, head: str) -> ToyPolicy:
        self._shares_rows = self._hub.keeps_documents_apart
        return ToyPolicy.load(path)

    def logprobs(self, work: Work, shards: list[RolloutBatch], temperature: float) -> TokenField:
        field = super().logprobs(work, shards, temperature)
        for row, i in enumerate(field.ids):
            if int(i) in self._hub.faults.nan_logprobs:
                field.values.row(row)[:] = np.nan
        return field

    def complete(self, prompts: list[IntArray], limit: int, stop: int) -> list[IntArray]:
        answers = []
        for prompt in prompts:
            row = [int(prompt[-1])]
            while len(row) <= limit and row[-1] != stop:
                row.append(int(self.engine.model.logits(torch.tensor(row[-1:])).argmax()))
            answers.append(np.array(row[1:]))
        return [each[each != stop] for each in answers]

    def connect(self, address: GroupAddress) -> None:
        pass

    def publish_weights(self, version: int, transport: str) -> WeightOffer | None:
        if self.rank:
            return None
        model = self.engine.model
        self._hub.wire[version] = model.weights.detach().clone()
        known = model.checksum() if find_transport(transport).one_sided else ""
        return WeightOffer(
            version, (model.meta(),), 8 * len(model.weights), transport, checksum=known
        )

    def send_weights(self, offer: WeightOffer) -> WeightReceipt | None:
        sent = ToyPolicy(self._hub.wire[offer.version]).checksum() if self.rank == 0 else ""
        return WeightReceipt(offer.version, sent, offer.nbytes, 0.0) if sent else None


class FakeCriticWorker(FakeTrainer, CriticWorker):
    def _read(self, path: str, head: str) -> ToyScalar:
        return ToyScalar.load(path, head)

    def shift_bias(self, mean: float) -> None:
        self.engine.model.bias -= mean


class FakeEnvironmentWorker(EnvironmentWorker):
    """Answers by `hub.environment`, without a process and without a tokenizer."""

    def __init__(self, rank: int, hub: Hub, _: Ring) -> None:
        super().__init__(rank)
        self._hub = hub

    def load(self, spec: EnvironmentSpec) -> RoleInfo:
        self.spec = spec
        return info("environment", self.rank)

    def step(self, asks: Sequence[Ask]) -> list[Told]:
        most = self._hub.steps_per_call or len(asks)
        return [self._hub.environment(ask) for ask in asks[:most]]

    def forget(self) -> None:
        pass


FAKES: dict[type, Any] = {
    EnvironmentWorker: FakeEnvironmentWorker,
    RolloutWorker: FakeRolloutWorker,
    RewardWorker: FakeRewardWorker,
    ReferenceWorker: FakeReferenceWorker,
    PolicyWorker: FakePolicyWorker,
    CriticWorker: FakeCriticWorker,
}

"""The five fake groups."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fakes.hub import Event, FakeAnswer, FakeGroup, Hub, first, nothing
from fakes.toy import ToyPolicy, ToyScalar, checksum, gradient_step
from orchestrator.config.cluster import RoleName
from orchestrator.roles.dispatch import Dispatch
from orchestrator.roles.interfaces import WHOLE, Experience, Fields, Generation, Rollouts, joined
from workers.data.rows.asked import Asked
from workers.errors import RoleError, StaleEngineError, WeightSyncError
from workers.generation.engine import pack
from workers.ops import (
    ResponseTokens,
    importance_weights,
    pair_accuracy,
    rankings_loss,
    ratio_stats,
    value_loss,
)
from workers.records.arrays import Ragged
from workers.records.gather import gather_experience, gather_fields, gather_rollouts, gather_scores
from workers.records.generation import Delivery, GenerationRequest, RolloutBatch, Sampling
from workers.records.processes import FileRecord, RoleInfo
from workers.records.specs import (
    FrozenModelSpec,
    PolicyLossSpec,
    RewardSpec,
    RolloutSpec,
    ShapingSpec,
    TrainModelSpec,
)
from workers.records.training import (
    PairCounts,
    PolicyStep,
    RankingStep,
    Scores,
    SequenceField,
    StepStats,
    StepWork,
    SupervisedStep,
    TextLoss,
    TokenBatch,
    TokenField,
    Work,
)
from workers.records.weights import GroupAddress, TensorMeta, WeightOffer, WeightReceipt
from workers.training.experience import build_experience, kl_sums
from workers.training.policy_loss import batch_loss
from workers.weights.transport import find_transport

RATE = 0.5  # of every trainer's gradient step; schedules are the real trainers' business


class FakeGeneration(Generation):
    """Whole, or in parts of so many sequences."""

    def __init__(self, answer: FakeAnswer[Rollouts], part_sequences: int) -> None:
        self._answer, self._size = answer, part_sequences

    def result(self) -> Rollouts:
        return self._answer.result()

    def parts(self) -> Iterator[Rollouts]:
        whole = self.result()
        if not self._size:
            yield whole
            return
        batch = RolloutBatch.concat(whole.shards)
        for start in range(0, len(batch), self._size):
            rows = range(start, min(start + self._size, len(batch)))
            yield _rollouts([batch.select(list(rows))])


class FakeRollout(FakeGroup):
    role = "rollout"

    refresh = None

    @property
    def ranks(self) -> list[int]:
        return list(range(self.size))

    def replace_lost(self) -> list[str]:
        return []  # lost engines are the business of real processes

    def join(self) -> None:
        pass

    def start(self, spec: RolloutSpec, version: int) -> FakeAnswer[list[RoleInfo]]:
        self._spec = spec
        self.models = [ToyPolicy.load(spec.checkpoint) for _ in range(self.size)]
        self.versions = [version] * self.size
        self.statuses = ["admitted"] * self.size
        return self._all("start", self._info, version=version, spec=spec)

    def sleep(self) -> FakeAnswer[None]:
        if not self._spec.sleep:
            return FakeAnswer(Hub(), "", None)  # nobody is asked
        return self._all("sleep", lambda _: None, nothing)

    def restart(self, spec: RolloutSpec, version: int) -> FakeAnswer[list[RoleInfo]]:
        self.hub.events.append(Event("start", "rollout.restart", {"spec": spec}))
        return self.start(spec, version)

    def _info(self, rank: int) -> RoleInfo:
        return RoleInfo(self.role, rank, 1, "here", "cpu")

    def _require(self, rank: int, version: int, *statuses: str) -> None:
        if self.versions[rank] != version or self.statuses[rank] not in statuses:
            raise StaleEngineError(
                f"asked for version {version}, holds version {self.versions[rank]} "
                f"({self.statuses[rank]})",
                where=f"rollout worker {rank}",
                fix="transfer the weights of that version",
            )

    def _sample(
        self, rank: int, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> RolloutBatch:
        results = [
            self.models[rank].sample(
                request.prompt_tokens,
                seed,
                sampling.temperature,
                sampling.max_tokens,
                self._spec.eos_token_id,
            )
            for request in requests
            for seed in request.seeds
        ]
        return pack(requests, results, self.versions[rank])

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        version: int,
        delivery: Delivery = WHOLE,
    ) -> FakeGeneration:
        dispatch = Dispatch(requests, range(self.size), sampling.max_tokens, delivery.groups)
        hands = {hand.rank: hand for hand in dispatch.owed}

        def call(rank: int) -> RolloutBatch:
            self._require(rank, version, "admitted")
            asked = dispatch.requests(hands[rank])
            batch = self._sample(rank, asked, sampling)
            return _first_to_finish(batch, asked, hands[rank].quota)

        return FakeGeneration(
            self._all(
                "generate",
                call,
                _rollouts,
                list(hands),
                version=version,
                requests=list(requests),
                sampling=sampling,
                delivery=delivery,
            ),
            delivery.part_sequences,
        )

    def pause(self) -> FakeAnswer[None]:
        return self._all("pause", lambda _: None, nothing)

    def resume(self, version: int) -> None:
        self.hub.events.append(Event("start", "rollout.resume", {"version": version}))

    def hold(self, batch: RolloutBatch) -> Rollouts:
        return _rollouts([batch])

    def fetch(self, rollouts: Rollouts) -> FakeAnswer[RolloutBatch]:
        return self._all("fetch", lambda _: RolloutBatch.concat(rollouts.shards), first, [0])

    def load_checkpoint(self, path: str, version: int) -> FakeAnswer[list[WeightReceipt]]:
        def call(rank: int) -> WeightReceipt:
            found = ToyPolicy.load(path)
            self.statuses[rank] = "empty"
            if found.layers != self.models[rank].layers:
                raise WeightSyncError(f"weights do not fit the model: {found.layers} layers")
            self.models[rank] = found
            self.versions[rank], self.statuses[rank] = version, "admitted"
            return WeightReceipt(version, checksum(self.models[rank].weights), 8, 0.0)

        return self._all("load_checkpoint", call, version=version, path=path)

    def connect(self, address: GroupAddress) -> FakeAnswer[None]:
        return self._all("connect", lambda _: None, nothing, address=address)

    def receive_weights(
        self, offer: WeightOffer, ranks: Sequence[int] | None = None
    ) -> FakeAnswer[list[WeightReceipt]]:
        def call(rank: int) -> WeightReceipt:
            self.statuses[rank] = "unverified"
            self.models[rank] = ToyPolicy(self.hub.wire[offer.version])
            self.versions[rank] = offer.version
            broken = self.hub.faults.wrong_checksum and rank == self.size - 1
            received = "broken" if broken else checksum(self.models[rank].weights)
            return WeightReceipt(offer.version, received, offer.nbytes, 0.0)

        return self._all("receive_weights", call, ranks=ranks, version=offer.version)

    def probe(
        self,
        prompts: list[tuple[int, ...]],
        max_tokens: int,
        temperature: float,
        version: int,
        ranks: Sequence[int] | None = None,
    ) -> FakeAnswer[Rollouts]:
        def call(rank: int) -> RolloutBatch:
            self._require(rank, version, "unverified", "admitted")
            requests = [
                GenerationRequest(i, tokens, (rank * len(prompts) + i,), (self._spec.seed + i,))
                for i, tokens in enumerate(prompts)
            ]
            batch = self._sample(rank, requests, Sampling(temperature, max_tokens))
            shifted = (batch.logprobs.values + self.hub.faults.parity_offset).astype(np.float32)
            return replace(batch, logprobs=Ragged(shifted, batch.logprobs.offsets))

        return self._all(
            "probe", call, _rollouts, ranks, version=version, prompts=prompts, tokens=max_tokens,
            temperature=temperature,
        )  # fmt: skip

    def admit(self, version: int, ranks: Sequence[int] | None = None) -> FakeAnswer[None]:
        def call(rank: int) -> None:
            self._require(rank, version, "unverified", "admitted")
            self.statuses[rank] = "admitted"

        return self._all("admit", call, nothing, ranks, version=version)


class FakeReward(FakeGroup):
    role = "reward"

    def load(self, spec: RewardSpec) -> FakeAnswer[list[RoleInfo]]:
        def call(rank: int) -> RoleInfo:
            assert spec.model is not None, "the fake has no functions"
            self.model = ToyScalar.load(spec.model.checkpoint, "keep")
            return RoleInfo(self.role, rank, 1, "here", "cpu")

        return self._all("load", call, spec=spec)

    def score(self, rollouts: Rollouts, asked: Sequence[Asked] = ()) -> FakeAnswer[Scores]:
        ids = rollouts.summary.ids
        hands = [ids[rank :: self.size] for rank in range(self.size)]

        def call(rank: int) -> Scores:
            batch = gather_rollouts(rollouts.shards, hands[rank])
            with torch.no_grad():
                values = [float(self.model.prefix_values(r)[-1]) for r in batch.tokens.rows()]
            reasons = [self.hub.faults.failed_rewards(int(i)) for i in batch.ids]
            values = [np.nan if reason else v for v, reason in zip(values, reasons, strict=True)]
            return Scores(batch.ids, np.array(values, np.float32), tuple(reasons))

        busy = [rank for rank, hand in enumerate(hands) if len(hand)]
        return self._all(
            "score", call, lambda parts: gather_scores(parts, ids), busy, ids=ids, asked=asked
        )

    def score_batch(self, batch: RolloutBatch, asked: Sequence[Asked] = ()) -> FakeAnswer[Scores]:
        return self.score(_rollouts([batch]), asked)


class FakeReference(FakeGroup):
    role = "reference"

    def load(self, spec: FrozenModelSpec) -> FakeAnswer[list[RoleInfo]]:
        def call(rank: int) -> RoleInfo:
            self.model = ToyPolicy.load(spec.checkpoint)
            return RoleInfo(self.role, rank, 1, "here", "cpu")

        return self._all("load", call, spec=spec)

    def logprobs(
        self, works: Sequence[Work], rollouts: Rollouts, temperature: float
    ) -> FakeAnswer[Fields]:
        return self._all(
            "logprobs",
            lambda rank: _logprobs(self.model, works[rank], rollouts, temperature),
            _fields,
            temperature=temperature,
            works=works,
        )

    def fetch(self, fields: Fields) -> FakeAnswer[list[TokenField]]:
        return self._all("fetch", lambda _: list(fields.shards), first, [0])

    def row_losses(self, batches: Sequence[TokenBatch]) -> FakeAnswer[list[np.ndarray]]:
        def call(rank: int) -> np.ndarray:
            with torch.no_grad():
                losses = [float(_nll(self.model, batches[rank], row).sum())
                          for row in range(len(batches[rank]))]  # fmt: skip
            return np.array(losses, np.float32)

        return self._all("row_losses", call, batches=batches)


class FakeTrainer(FakeGroup):
    model: Any
    rests = False  # as its group's spec would say

    def load(self, spec: TrainModelSpec) -> FakeAnswer[None]:
        return self._all("load", lambda _: self._load(spec), nothing, spec=spec)

    def _load(self, spec: TrainModelSpec) -> None:
        raise NotImplementedError

    def save(self, path: str, tokenizer_from: str) -> FakeAnswer[None]:
        return self._all("save", lambda _: self._loaded().save(path), nothing, [0])

    def snapshot(self, folder: str) -> FakeAnswer[None]:
        def call(_: int) -> None:
            self._snapshot = Path(folder) / f"{self.role}.0"
            self._loaded().save(self._snapshot)

        return self._all("snapshot", call, nothing, [0], folder=folder)

    def written(self) -> FakeAnswer[list[FileRecord]]:
        def call(_: int) -> FileRecord:
            file = self._snapshot / "model.safetensors"
            data = file.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            return FileRecord(f"{self._snapshot.name}/{file.name}", len(data), digest)

        return self._all("written", call, lambda parts: parts, [0])

    def rest(self) -> FakeAnswer[None]:
        if not self.rests:
            return FakeAnswer(Hub(), "", None)
        return self._all("rest", lambda _: None, nothing)

    def restore(self, folder: str) -> FakeAnswer[None]:
        return self._all("restore", lambda _: self._restore(folder), nothing, [0], folder=folder)

    def _restore(self, folder: str) -> None:
        raise NotImplementedError

    def _loaded(self) -> Any:
        if self.model is None:
            raise RoleError("no model is loaded", where=f"{self.role} rank 0", fix="call load")
        return self.model

    def _step(self, loss: torch.Tensor, extra: dict[str, float]) -> StepStats:
        norm = gradient_step(self.model.weights, loss, RATE)
        return StepStats(float(loss.detach()), norm, RATE, True, extra)


class FakePolicy(FakeTrainer):
    role = "policy"
    model: ToyPolicy | None = None
    keeps_documents_apart = True  # a bigram model does, but for their first tokens

    def _load(self, spec: TrainModelSpec) -> None:
        self.model = ToyPolicy.load(spec.checkpoint)

    def _restore(self, folder: str) -> None:
        self.model = ToyPolicy.load(f"{folder}/policy.0")

    def shares_rows(self) -> FakeAnswer[bool]:
        return self._all("shares_rows", lambda _: self.keeps_documents_apart, first, [0])

    def _text_loss(self, steps: Sequence[SupervisedStep]) -> torch.Tensor:
        _same_count(steps)
        batches = [batch for step in steps for batch in step.micro_batches]
        parts = [_nll(self._loaded(), b, row).sum() for b in batches for row in range(len(b))]
        return torch.stack(parts).sum()

    def train_supervised(self, steps: Sequence[SupervisedStep]) -> FakeAnswer[StepStats]:
        return self._all(
            "train_supervised",
            lambda _: self._step(self._text_loss(steps) / steps[0].tokens, {}),
            first,
            [0],
            steps=steps,
            tokens=steps[0].tokens,
        )

    def evaluate_supervised(self, steps: Sequence[SupervisedStep]) -> FakeAnswer[TextLoss]:
        return self._all(
            "evaluate_supervised",
            lambda _: TextLoss(float(self._text_loss(steps).detach()), steps[0].tokens),
            first,
            [0],
            steps=steps,
        )

    def logprobs(
        self, works: Sequence[Work], rollouts: Rollouts, temperature: float
    ) -> FakeAnswer[Fields]:
        def call(rank: int) -> TokenField:
            field = _logprobs(self._loaded(), works[rank], rollouts, temperature)
            for row, i in enumerate(field.ids):
                if int(i) in self.hub.faults.nan_logprobs:
                    field.values.row(row)[:] = np.nan
            return field

        return self._all("logprobs", call, _fields, temperature=temperature)

    def fetch(self, fields: Fields) -> FakeAnswer[list[TokenField]]:
        return self._all("fetch", lambda _: list(fields.shards), first, [0])

    def kl_sums(
        self, works: Sequence[Work], rollouts: Rollouts, old: Fields, reference: Fields
    ) -> FakeAnswer[list[SequenceField]]:
        def call(rank: int) -> SequenceField:
            batch = gather_rollouts(rollouts.shards, works[rank].ids)
            shards = old.shards or [TokenField(batch.ids, batch.logprobs)]
            parts = (gather_fields(s, batch.ids) for s in (shards, reference.shards))
            return kl_sums(batch, *parts)

        return self._all("kl_sums", call, works=works)

    def build_experience(
        self,
        works: Sequence[Work],
        rollouts: Rollouts,
        old: Fields,
        reference: Fields,
        values: Fields,
        scores: Scores,
        shaping: ShapingSpec,
        numbers: SequenceField | None = None,
    ) -> FakeAnswer[Experience]:
        def call(rank: int) -> Any:
            ids = works[rank].ids
            batch = gather_rollouts(rollouts.shards, ids)
            sampled = [TokenField(ids, batch.logprobs)]
            parts = (gather_fields(s, ids) if s else None for s in (
                old.shards or sampled, reference.shards, values.shards
            ))  # fmt: skip
            own = gather_scores([scores], ids)
            return build_experience(batch, *parts, own, shaping, numbers)

        def combine(parts: list[Any]) -> Experience:
            return Experience(tuple(b for b, _ in parts), tuple(s for _, s in parts))

        return self._all(
            "build_experience", call, combine, works=works, scores=scores, shaping=shaping,
            numbers=numbers,
        )  # fmt: skip

    def update(
        self, steps: Sequence[list[PolicyStep]], experience: Experience, loss: PolicyLossSpec
    ) -> FakeAnswer[list[StepStats]]:
        def call(_: int) -> list[StepStats]:
            return [self._update(shares, experience, loss) for shares in zip(*steps, strict=True)]

        return self._all("update", call, first, [0], steps=steps, experience=experience, loss=loss)

    def _update(
        self, shares: Sequence[PolicyStep], experience: Experience, loss: PolicyLossSpec
    ) -> StepStats:
        _same_count([share.ppo.work for share in shares])
        batch = gather_experience(
            experience.shards, np.concatenate([share.ppo.work.ids for share in shares])
        )
        new = torch.cat(
            [
                self._loaded().logprobs(row, start, loss.temperature)
                for row, start in zip(batch.tokens.rows(), batch.prompt_lengths, strict=True)
            ]
        )
        old = torch.tensor(batch.old_logprobs.values).double()
        advantages = torch.tensor(batch.advantages.values).double()
        advantages = (advantages - loss.advantage_mean) / loss.advantage_std
        counted, tokens = torch.ones_like(new, dtype=torch.bool), shares[0].ppo.tokens
        weights, importance = None, {}
        if loss.importance_cap is not None:
            sampled = torch.tensor(batch.rollout_logprobs.values).double()
            weights, outside = importance_weights(
                old, sampled, counted, loss.importance_cap, loss.importance_floor,
                drop=loss.importance_outside == "drop",
            )  # fmt: skip
            importance = {
                "importance_mean": float(weights.sum()) / tokens,
                "importance_capped": float(outside.sum()) / tokens,
            }
        lengths = torch.from_numpy(batch.old_logprobs.lengths)
        owner = torch.arange(len(lengths)).repeat_interleave(lengths)
        reference = None
        if loss.kl_coefficient:
            reference = torch.tensor(batch.ref_logprobs.values).double()
        found = batch_loss(
            ResponseTokens(new, old, advantages, owner, lengths), reference, weights, loss,
            shares[0].ppo,
        )  # fmt: skip
        value, kl = found.policy, {}
        if found.kl is not None:
            value, kl = (
                value + loss.kl_coefficient * found.kl,
                {"kl_loss": float(found.kl.detach())},
            )
        stats = ratio_stats(new.detach(), old, counted)
        extra = {
            "clip_fraction": float(found.clipped.sum()) / tokens,
            "approx_kl": float(stats.approx_kl) / tokens,
            "entropy": 0.0,
            "ratio_mean": float(stats.ratio) / tokens,
            "ratio_max": float(stats.ratio_max),
            **importance,
            **kl,
        }
        if shares[0].ptx is None:
            return self._step(value, extra)
        texts = [share.ptx for share in shares if share.ptx is not None]
        text = self._text_loss(texts) / texts[0].tokens
        return self._step(
            value + loss.ptx_coefficient * text, extra | {"ptx_loss": float(text.detach())}
        )

    def transfer_address(self, receivers: int, transport: str) -> GroupAddress:
        return GroupAddress("here", 1, 1 + receivers)

    def connect(self, address: GroupAddress) -> FakeAnswer[None]:
        return self._all("connect", lambda _: None, nothing, [0], address=address)

    def publish_weights(self, version: int, transport: str) -> FakeAnswer[WeightOffer]:
        def call(_: int) -> WeightOffer:
            weights = self._loaded().weights.detach().clone()
            self.hub.wire[version] = weights
            known = checksum(weights) if find_transport(transport).one_sided else ""
            meta = TensorMeta("weights", "float64", tuple(weights.shape))
            return WeightOffer(version, (meta,), 8 * len(weights), transport, checksum=known)

        return self._all("publish_weights", call, first, [0], version=version, transport=transport)

    def send_weights(self, offer: WeightOffer) -> FakeAnswer[WeightReceipt]:
        def call(_: int) -> WeightReceipt:
            sent = checksum(self.hub.wire[offer.version])
            return WeightReceipt(offer.version, sent, offer.nbytes, 0.0)

        return self._all("send_weights", call, first, [0], version=offer.version)


class FakeCritic(FakeTrainer):
    role = "critic"
    model: ToyScalar | None = None

    def _load(self, spec: TrainModelSpec) -> None:
        self.model = ToyScalar.load(spec.checkpoint, spec.head)

    def _restore(self, folder: str) -> None:
        self.model = ToyScalar.load(f"{folder}/critic.0", "keep")

    def _scores(self, rows: Ragged) -> torch.Tensor:
        return torch.stack([self._loaded().prefix_values(row)[-1] for row in rows.rows()])

    def _rank(
        self, steps: Sequence[RankingStep]
    ) -> tuple[torch.Tensor, int, int, list[torch.Tensor]]:
        """Summed loss over rankings, pairs ordered right of all, and scores."""
        _same_count(steps)
        rankings = [r for step in steps for batch in step.micro_batches for r in batch]
        scores = [self._scores(r.sequences) for r in rankings]
        ranks = [torch.tensor(r.ranks) for r in rankings]
        counts = [pair_accuracy(s.detach(), r) for s, r in zip(scores, ranks, strict=True)]
        loss = rankings_loss(scores, ranks, denominator=1)
        return loss, sum(int(c) for c, _ in counts), sum(int(p) for _, p in counts), scores

    def train_rankings(self, steps: Sequence[RankingStep]) -> FakeAnswer[StepStats]:
        def call(_: int) -> StepStats:
            loss, correct, pairs, _ = self._rank(steps)
            return self._step(loss / steps[0].rankings, {"pair_accuracy": correct / pairs})

        return self._all("train_rankings", call, first, [0], steps=steps)

    def evaluate_rankings(self, steps: Sequence[RankingStep]) -> FakeAnswer[PairCounts]:
        def call(_: int) -> PairCounts:
            loss, correct, pairs, scores = self._rank(steps)
            found = tuple(s.detach().numpy().astype(np.float32) for s in scores)
            return PairCounts(correct, pairs, float(loss.detach()), steps[0].rankings, found)

        return self._all("evaluate_rankings", call, first, [0], steps=steps)

    def score(self, batch: TokenBatch) -> FakeAnswer[np.ndarray]:
        return self._all(
            "score",
            lambda _: self._scores(batch.tokens).detach().numpy().astype(np.float32),
            first,
            batch=batch,
        )

    def shift_bias(self, mean: float) -> FakeAnswer[None]:
        def call(_: int) -> None:
            self._loaded().bias -= mean

        return self._all("shift_bias", call, nothing, [0], mean=mean)

    def values(self, works: Sequence[Work], rollouts: Rollouts) -> FakeAnswer[Fields]:
        def call(rank: int) -> TokenField:
            batch = gather_rollouts(rollouts.shards, works[rank].ids)
            with torch.no_grad():
                rows = [
                    self._loaded().prefix_values(row)[start - 1 : -1].numpy()
                    for row, start in zip(batch.tokens.rows(), batch.prompt_lengths, strict=True)
                ]
            return TokenField(batch.ids, Ragged.from_rows(rows, np.float32))

        return self._all("values", call, _fields)

    def update(
        self, steps: Sequence[list[StepWork]], experience: Experience, value_clip: float
    ) -> FakeAnswer[list[StepStats]]:
        def call(_: int) -> list[StepStats]:
            return [self._update(s, experience, value_clip) for s in zip(*steps, strict=True)]

        return self._all(
            "update", call, first, [0], steps=steps, experience=experience, value_clip=value_clip
        )

    def _update(
        self, shares: Sequence[StepWork], experience: Experience, value_clip: float
    ) -> StepStats:
        _same_count([share.work for share in shares])
        batch = gather_experience(
            experience.shards, np.concatenate([share.work.ids for share in shares])
        )
        values = torch.cat(
            [
                self._loaded().prefix_values(row)[start - 1 : -1]
                for row, start in zip(batch.tokens.rows(), batch.prompt_lengths, strict=True)
            ]
        )
        loss = value_loss(
            values,
            torch.tensor(batch.values.values).double(),
            torch.tensor(batch.returns.values).double(),
            torch.ones_like(values, dtype=torch.bool),
            value_clip,
            denominator=shares[0].tokens,
        )
        return self._step(loss, {"value_clip_fraction": 0.0, "explained_variance": 0.0})


_KINDS = {
    kind.role: kind for kind in (FakeRollout, FakeReward, FakeReference, FakePolicy, FakeCritic)
}


class FakeRoles:
    """All groups of one run, made at once."""

    def __init__(self, hub: Hub, **sizes: int) -> None:
        self.hub = hub
        self._sizes = sizes
        self.replaced: list[str] = []
        self.brought_up: list[RoleName] = []
        self.released: list[RoleName] = []
        self.look_after: Callable[[], object] = lambda: None
        self.rollout = FakeRollout(hub, sizes.get("rollout", 1))
        self.reward = FakeReward(hub, sizes.get("reward", 1))
        self.reference = FakeReference(hub, sizes.get("reference", 1))
        self.policy = FakePolicy(hub, sizes.get("policy", 1))
        self.critic = FakeCritic(hub, sizes.get("critic", 1))

    def bring_up(self, *names: RoleName) -> None:
        self.brought_up += names

    def release(self, *names: RoleName) -> None:
        self.released += names

    def replace_lost(self) -> list[str]:
        """The new groups know nothing of what the lost ones held."""
        gone, self.hub.faults.gone = sorted(self.hub.faults.gone), set()
        for role in gone:
            setattr(self, role, _KINDS[role](self.hub, self._sizes.get(role, 1)))
        self.replaced = gone
        return [f"{role} rank 0" for role in gone]

    def abandon(self) -> None:
        pass  # a fake samples at once, or when it is waited for

    def holds(self, name: RoleName) -> bool:
        return name.value not in self.replaced

    def infos(self) -> list[RoleInfo]:
        return [RoleInfo(name.value, 0, 1, "here", "cpu") for name in RoleName]


def _rollouts(shards: list[RolloutBatch]) -> Rollouts:
    return joined([Rollouts.of(shard, shard.summary()) for shard in shards])


def _fields(parts: list[TokenField]) -> Fields:
    return Fields(tuple(parts), tuple(part.ids for part in parts))


def _first_to_finish(
    batch: RolloutBatch, requests: Sequence[GenerationRequest], groups: int
) -> RolloutBatch:
    """The groups whose longest response is shortest, in the order of the requests."""
    length = dict(zip(batch.ids.tolist(), batch.response_lengths.tolist(), strict=True))
    longest = [max(length[i] for i in request.ids) for request in requests]
    first = np.sort(np.argsort(longest, kind="stable")[:groups])
    row = {i: n for n, i in enumerate(batch.ids.tolist())}
    return batch.select([row[i] for n in first for i in requests[n].ids])


def _logprobs(model: ToyPolicy, work: Work, rollouts: Rollouts, temperature: float) -> TokenField:
    batch = gather_rollouts(rollouts.shards, work.ids)
    with torch.no_grad():
        rows = [
            model.logprobs(row, int(start), temperature).numpy()
            for row, start in zip(batch.tokens.rows(), batch.prompt_lengths, strict=True)
        ]
    return TokenField(batch.ids, Ragged.from_rows(rows, np.float32))


def _nll(model: ToyPolicy, batch: TokenBatch, row: int) -> torch.Tensor:
    counted = torch.tensor(batch.targets.row(row)[1:].astype(bool))
    return -model.logprobs(batch.tokens.row(row), 1)[counted]


def _same_count(shares: Sequence[Any]) -> None:
    counts = {len(share.micro_batches) for share in shares}
    assert len(counts) == 1, f"ranks would wait for each other: {counts} micro-batches"

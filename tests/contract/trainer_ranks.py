"""The work that `test_trainers` gives to ranks; run as a program, one process a rank."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from workers.errors import NonFiniteError
from workers.records.arrays import Ragged
from workers.records.gather import gather_experience
from workers.records.generation import Finish, RolloutBatch
from workers.records.processes import RankAddress
from workers.records.specs import (
    GroupSpec,
    OptimizerSpec,
    PartSpec,
    PolicyLossSpec,
    PreferenceSpec,
    TrainModelSpec,
)
from workers.records.training import (
    ExperienceBatch,
    PolicyStep,
    Ranking,
    RankingStep,
    StepWork,
    SupervisedStep,
    TokenBatch,
    Work,
)
from workers.records.weights import GroupAddress
from workers.roles.critic import CriticWorker
from workers.roles.policy import PolicyWorker
from workers.weights.packing import make_offer
from workers.weights.transfer import WeightReceiver
from workers.weights.transport import Link

VOCABULARY = 40
LOSS = PolicyLossSpec(0.2, 0.7, 0.3, 1.7, 0.5)
# Other surrogates, averages and KL terms; the first with dual clip and importance weights.
FURTHER = {
    "clip": dataclasses.replace(
        LOSS, aggregate="constant", max_response_tokens=9, clip_high=0.4, dual_clip=1.1,
        importance_cap=1.2, importance_floor=0.8, importance_outside="drop",
    ),
    "gspo": dataclasses.replace(
        LOSS, aggregate="sequences", policy_loss=PartSpec("gspo"), clip=0.3,
        kl_coefficient=0.6, kl_estimator="k3",
    ),
    "cispo": dataclasses.replace(
        LOSS, policy_loss=PartSpec("cispo"), clip=1.0, clip_high=0.1, kl_coefficient=0.2,
        kl_estimator="k2",
    ),
}  # fmt: skip
PREFERENCES = {
    "dpo": PreferenceSpec("dpo", 0.2, 0.0, 0.1, False, "all", 0.0),
    "ipo": PreferenceSpec("ipo", 0.5, 0.0, 0.0, False, "best_worst", 0.0),
    "simpo": PreferenceSpec("simpo", 2.0, 0.3, 0.0, False, "adjacent", 0.7),
}
OPTIMIZER = OptimizerSpec(1e-2, (0.9, 0.95), 1e-5, 0.1, 0.5, "linear", 2, 0.1, 8)
POISON_ID = 103
# Sequences end to end, and log-probabilities in chunks of three tokens.
LEAN = {"packed": True, "logits_bytes": 3 * 4 * VOCABULARY}


def group(stage: int) -> GroupSpec:
    return GroupSpec(stage, "float32", "cpu", 1, 60.0, 4096, 0)


def _rows(rng: np.random.Generator, lengths: list[int]) -> Ragged:
    return Ragged.from_rows([rng.integers(3, VOCABULARY, n) for n in lengths], np.int32)


def texts() -> TokenBatch:
    """Seven documents of unequal length; some tokens are no targets."""
    rng = np.random.default_rng(1)
    tokens = _rows(rng, [5, 9, 3, 12, 7, 4, 8])
    return TokenBatch(tokens, Ragged(rng.random(len(tokens.values)) < 0.7, tokens.offsets))


def rankings() -> list[Ranking]:
    """Three prompts of K = 4, 3 and 5 completions; ties, and one prompt that only ties."""
    rng = np.random.default_rng(2)
    ranks = ([1, 2, 2, 3], [1, 1, 1], [2, 1, 4, 3, 3])
    return [
        Ranking(
            i, _rows(rng, rng.integers(3, 9, len(r)).tolist()), np.array(r), prompt_length=2,
            reference=rng.normal(-9, 3, len(r)).astype(np.float32),
        )
        for i, r in enumerate(ranks)
    ]  # fmt: skip


def experience() -> ExperienceBatch:
    """Five sequences with made-up old numbers."""
    rng = np.random.default_rng(3)
    prompts = np.array([2, 3, 1, 4, 2])
    responses = np.array([3, 5, 2, 4, 6])
    tokens = _rows(rng, (prompts + responses).tolist())
    offsets = np.concatenate([[0], responses.cumsum()])

    def field(scale: float, shift: float) -> Ragged:
        values = rng.normal(shift, scale, offsets[-1]).astype(np.float32)
        return Ragged(values, offsets)

    return ExperienceBatch(
        np.arange(100, 105), tokens, prompts, field(0.1, -3.6), field(0.2, -3.6), field(1, 0),
        field(0.5, 1), field(0.1, 0), field(0.3, -3.5),
    )  # fmt: skip


def rollouts() -> RolloutBatch:
    e = experience()
    zeros = np.zeros(5, np.int64)
    return RolloutBatch(
        e.ids, zeros, e.tokens, e.prompt_lengths, e.rollout_logprobs, zeros + Finish.STOP,
        np.zeros((5, 2), np.int64),
    )  # fmt: skip


def split(rank: int, world: int) -> tuple[list[list[int]], list[list[int]]]:
    """Micro-batches of this rank: rows of the seven texts, rows of the five sequences."""
    if world == 1:
        return [[0, 1, 2, 3], [4, 5, 6]], [[0, 1, 2], [3, 4]]
    # Rank 1 is short of work: its last micro-batch is a dummy.
    return [([[0, 1], [6]], [[0], [4, 2]]), ([[2, 3, 4, 5], []], [[1, 3], []])][rank]


def work(rank: int, world: int) -> Work:
    ids = experience().ids
    rows = split(rank, world)[1]
    return Work(tuple(ids[np.array(r, np.int64)] for r in rows))


def supervised(rank: int, world: int) -> SupervisedStep:
    batch = texts()
    parts = tuple(batch.select(np.array(r, np.int64)) for r in split(rank, world)[0])
    return SupervisedStep(parts, batch.target_count)


def policy_step(rank: int, world: int) -> PolicyStep:
    ppo = StepWork(work(rank, world), len(experience().values.values), 5)
    return PolicyStep(ppo, supervised(rank, world))


def ranking_step(rank: int, world: int) -> RankingStep:
    r = rankings()
    if world == 1:
        return RankingStep(((r[0], r[1]), (r[2],)), 2)
    return RankingStep([((r[0],), (r[1],)), ((r[2],), ())][rank], 2)


def shard(rank: int, world: int) -> list[ExperienceBatch]:
    """The experience in two shards, in another order than the work."""
    e = experience()
    return [gather_experience([e], e.ids[[4, 1]]), gather_experience([e], e.ids[[0, 3, 2]])]


def run_policy(rank: int, world: int, stage: int, where: RankAddress, folder: Path) -> dict:

    worker = PolicyWorker(rank)
    worker.join(where, group(stage))
    spec = TrainModelSpec(str(folder / "base"), OPTIMIZER)
    worker.load(spec)
    out: dict = {"logprobs": worker.logprobs(work(rank, world), [rollouts()], 0.7)}
    out["supervised"] = [worker.train_supervised(supervised(rank, world)) for _ in range(3)]
    out["text_loss"] = worker.evaluate_supervised(supervised(rank, world))
    out["greedy"] = worker.complete([np.array([1, 4, 2]), np.array([3])], 6, 39)
    out["stopped"] = worker.complete([np.array([3])], 6, int(out["greedy"][1][2]))
    worker.save(str(folder / f"supervised-{world}-{stage}"), str(folder / "base"))

    worker.load(dataclasses.replace(spec, ema_decay=0.5, gradient_checkpointing=True, **LEAN))
    steps = [policy_step(rank, world)] * 2
    out["ppo"] = worker.update(steps, shard(rank, world), LOSS)
    offer = worker.publish_weights(7, "shm")
    if rank == 0:
        buckets = WeightReceiver(Link(torch.device("cpu"), 60.0)).receive(offer)
        out["published"] = {n: w.clone().numpy() for b in buckets for n, w in b}
    out["sent"] = _send_to_a_thread(worker)
    worker.save(str(folder / f"ppo-{world}-{stage}"), str(folder / "base"))

    for name, loss in PREFERENCES.items():
        worker.load(dataclasses.replace(spec, packed=name == "ipo"))
        out[f"preference_{name}"] = [
            worker.train_preferences(ranking_step(rank, world), loss) for _ in range(2)
        ]
    out["preferred"] = worker.evaluate_preferences(ranking_step(rank, world), loss)
    for name, loss in FURTHER.items():
        worker.load(dataclasses.replace(spec, **LEAN) if name == "gspo" else spec)
        out[f"ppo_{name}"] = worker.update(steps, shard(rank, world), loss)
    worker.load(spec)
    spoilt = [_poison(e) for e in shard(rank, world)]
    try:
        worker.update(steps, spoilt, LOSS)
    except NonFiniteError as error:
        out["error"] = str(error)
    worker.load(spec)
    try:
        with _overflow(worker):
            worker.update(steps, shard(rank, world), LOSS)
    except NonFiniteError as error:
        out["gradient_error"] = str(error)
    worker.load(spec)
    out["after_error"] = worker.train_supervised(supervised(rank, world))

    worker._group = dataclasses.replace(worker._joined(), skip_non_finite=True)
    worker.load(spec)
    out["skipped"] = worker.update(steps[:1], spoilt, LOSS)
    with _overflow(worker):
        out["skipped"] += worker.update(steps[:1], shard(rank, world), LOSS)
    out["after_skips"] = worker.train_supervised(supervised(rank, world))
    worker.unload()
    return out


def _send_to_a_thread(worker: PolicyWorker) -> dict | None:
    """Gather on all ranks; rank 0 sends through gloo to a receiver in a thread of its own."""
    offer = worker.publish_weights(8, "gloo")
    if offer is None:
        return worker.send_weights(make_offer(8, worker.engine.metas, "gloo"))

    def connect() -> WeightReceiver:
        address = GroupAddress(*worker.address(), 2)
        receiver = WeightReceiver(Link(torch.device("cpu"), 60.0))
        joining = pool.submit(receiver.connect, address, 1)
        worker.connect(address)
        joining.result()
        return receiver

    def receive() -> dict:
        return {n: w.clone().numpy() for b in receiver.receive(offer) for n, w in b}

    with ThreadPoolExecutor(1) as pool:
        left = connect()
        receiver = connect()  # as a second PPO stage does
        received = pool.submit(receive)
        worker.send_weights(offer)
        left.close()
        return received.result()


def _poison(e: ExperienceBatch) -> ExperienceBatch:
    values = e.advantages.values.copy()
    for i in np.flatnonzero(e.ids == POISON_ID):
        values[e.advantages.offsets[i]] = np.nan
    return dataclasses.replace(e, advantages=Ragged(values, e.advantages.offsets))


@contextlib.contextmanager
def _overflow(worker: PolicyWorker) -> Iterator[None]:
    """On rank 0 the gradient of one weight is not finite, while the loss is."""
    weight = next(worker.engine.module.parameters())
    hook = weight.register_hook(lambda gradient: gradient * np.inf) if worker.rank == 0 else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def run_critic(rank: int, world: int, stage: int, where: RankAddress, folder: Path) -> dict:
    worker = CriticWorker(rank)
    worker.join(where, group(stage))
    worker.load(TrainModelSpec(str(folder / "base"), OPTIMIZER, head="random"))
    out: dict = {"rankings": [worker.train_rankings(ranking_step(rank, world)) for _ in range(2)]}
    before = worker.score(texts())
    worker.shift_bias(0.75)
    out["shift"] = before - worker.score(texts())
    out["pairs"] = worker.evaluate_rankings(ranking_step(rank, world))
    out["after_shift"] = worker.train_rankings(ranking_step(rank, world))
    out["scores"] = worker.score(texts())
    reward = str(folder / f"reward-{world}-{stage}")
    worker.save(reward, str(folder / "base"))

    worker.load(TrainModelSpec(str(folder / "reward"), OPTIMIZER, packed=True))
    out["values"] = worker.values(work(rank, world), [rollouts()])
    step = StepWork(work(rank, world), len(experience().values.values), 5)
    out["value"] = worker.update([step] * 2, shard(rank, world), 0.2)
    worker.save(str(folder / f"critic-{world}-{stage}"), str(folder / "base"))
    worker.load(TrainModelSpec(str(folder / "reward"), OPTIMIZER, head="zero"))
    out["zero_values"] = worker.values(work(rank, world), [rollouts()])
    worker.unload()
    return out


def main() -> None:
    rank, world, port, folder = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    where = RankAddress(rank, world, "127.0.0.1", port)
    out = {}
    for stage in json.loads(sys.argv[5]):
        out["policy", stage] = run_policy(rank, world, stage, where, Path(folder))
        out["critic", stage] = run_critic(rank, world, stage, where, Path(folder))
    (Path(folder) / f"out-{world}-{rank}.pkl").write_bytes(pickle.dumps(out))


if __name__ == "__main__":
    main()

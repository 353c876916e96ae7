"""Every family through the real path: a DeepSpeed step, weight sync, vLLM, parity, a saved folder.

One trainer process and one engine process serve all families, one after the other. The optimizer
step is large, so a weight that does not travel shows as a difference of whole nats.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import FAMILIES, build_family
from safetensors.torch import save_file
from test_rollout_engines import Remote, make_spec, requests
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from orchestrator.roles.weight_sync import compare_logprobs
from workers.errors import ConfigError, StaleEngineError, WeightSyncError
from workers.model_folders.weight_files import SafetensorsFolder
from workers.models.load import load_causal_lm
from workers.records.arrays import Ragged
from workers.records.generation import RolloutBatch, Sampling
from workers.records.processes import RankAddress
from workers.records.specs import GroupSpec, OptimizerSpec, TrainModelSpec
from workers.records.training import Ranking, RankingStep, SupervisedStep, TokenBatch, Work
from workers.roles.rollout import engine_environment
from workers.weights.packing import describe, make_offer
from workers.weights.transfer import WeightSender
from workers.weights.transport import Link

LARGE = OptimizerSpec(3e-2, (0.9, 0.95), 1e-8, 0.0, 1e9, "constant", 0, 1.0, 8)
PROMPTS = [(1, 5, 9, 11, 4, 7, 8, 12, 30, 31, 20, 21), (1, 6), (1, 7, 7, 7, 9)]
# Tied and transposed with biases and learned positions; experts. The others: `pytest -m slow`.
DEFAULT = ("gpt2", "mixtral")


def serve_trainers(connection: Connection, rank: int) -> None:
    """Policy and critic of one rank in one process: (role, verb) in, results or errors out."""
    from workers.roles.critic import CriticWorker
    from workers.roles.policy import PolicyWorker

    workers = {"policy": PolicyWorker(rank), "critic": CriticWorker(rank)}
    while (call := connection.recv()) is not None:
        (role, verb), arguments = call
        try:
            connection.send((getattr(workers[role], verb)(*arguments), None))
        except Exception as error:  # noqa: BLE001 (whatever it is, the caller shall see it)
            connection.send((None, error))


@pytest.fixture(scope="module")
def processes() -> Iterator[tuple[Remote, Remote]]:
    """A trainer of one rank, and an engine."""
    with pytest.MonkeyPatch.context() as patch:
        trainer = Remote({"OMP_NUM_THREADS": "1"}, patch, serve_trainers)
        engine = Remote(engine_environment(make_spec("vllm", Path())), patch)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = RankAddress(0, 1, "127.0.0.1", probe.getsockname()[1])
    for role in ("policy", "critic"):
        trainer((role, "join"), where, GroupSpec(3, "float32", "cpu", 1, 60.0, 1 << 14, 0))
    yield trainer, engine
    trainer.stop()
    engine.stop()


def texts(count: int = 24) -> TokenBatch:
    rows = np.random.default_rng(3).integers(3, 90, (count, 40))
    return TokenBatch(
        Ragged.from_rows(list(rows), np.int32),
        Ragged.from_rows(list(np.ones_like(rows, bool)), np.bool_),
    )


@dataclass
class Trained:
    """A family whose policy made one large step, and whose engine was told."""

    name: str
    before: Path
    after: Path  # what the trainer saved
    trainer: Remote
    engine: Remote
    untold: float  # nats between the trainer and the engine before the sync
    probed: RolloutBatch  # sampled with the new weights

    def difference(self, batch: RolloutBatch) -> float:
        return difference(self.trainer, batch)


def difference(trainer: Remote, batch: RolloutBatch) -> float:
    """Engine against trainer, nats."""
    field = trainer(("policy", "logprobs"), Work((batch.ids,)), [batch], 1.0)
    return compare_logprobs(batch, [field]).max_difference


FAMILY = [
    pytest.param(name, marks=[] if name in DEFAULT else [pytest.mark.slow]) for name in FAMILIES
]


@pytest.fixture(scope="module", params=FAMILY)
def trained(
    request: pytest.FixtureRequest,
    processes: tuple[Remote, Remote],
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    trainer, engine = processes
    root = tmp_path_factory.mktemp(request.param)
    before = build_family(request.param, root / "before")
    spec = TrainModelSpec(str(before), LARGE, attention=FAMILIES[request.param].attention)
    trainer(("policy", "load"), spec)
    engine("start", make_spec("vllm", before), 0)
    batch = texts()
    step = SupervisedStep((batch,), batch.target_count)
    assert trainer(("policy", "train_supervised"), step).applied
    untold = difference(trainer, engine("probe", PROMPTS, 24, 1.0, 0))
    engine("receive_weights", trainer(("policy", "publish_weights"), 1, "shm"))
    probed = engine("probe", PROMPTS, 24, 1.0, 1)
    trainer(("policy", "save"), str(root / "after"), str(before))
    return Trained(request.param, before, root / "after", trainer, engine, untold, probed)


@torch.no_grad()
def plain_logprobs(model: Any, batch: RolloutBatch) -> list[np.ndarray]:
    """Of the response tokens, each row in its own unpadded pass."""
    rows = []
    for i in range(len(batch)):
        tokens = torch.tensor(batch.tokens.row(i).astype(np.int64))
        logp = model(tokens[None]).logits[0].double().log_softmax(-1)
        start = int(batch.prompt_lengths[i])
        rows.append(logp[start - 1 : -1].gather(1, tokens[start:, None])[:, 0].numpy())
    return rows


def worst(batch: RolloutBatch, rows: list[np.ndarray]) -> float:
    return max(float(np.abs(batch.logprobs.row(i) - row).max()) for i, row in enumerate(rows))


def test_engine_and_trainer_agree_after_the_sync(trained: Trained) -> None:
    assert trained.untold > 0.5  # the step was large
    assert trained.difference(trained.probed) <= FAMILIES[trained.name].tolerance


def test_the_saved_folder_loads_everywhere(trained: Trained) -> None:
    family = FAMILIES[trained.name]
    shapes = SafetensorsFolder(str(trained.after)).shapes
    assert shapes == SafetensorsFolder(str(trained.before)).shapes
    model, info = AutoModelForCausalLM.from_pretrained(
        trained.after, output_loading_info=True, attn_implementation=family.attention
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(trained.after).eos_token_id == 2
    trained.engine("load_checkpoint", str(trained.after), 5)
    batch = trained.engine("generate", requests(), Sampling(1.0, 24), 5)
    assert worst(batch, plain_logprobs(model, batch)) <= family.tolerance
    assert trained.difference(batch) <= family.tolerance


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for bucket in SafetensorsFolder(str(folder)).buckets() for n, t in bucket}


def of_first_layer(names: list[str]) -> list[str]:
    """What is outside the layers, the first layer, and of its experts the first."""
    numbers = {name: [int(p) for p in name.split(".") if p.isdigit()] for name in names}
    return [name for name, found in numbers.items() if not any(found)]


def test_a_weight_that_stays_behind_is_seen(trained: Trained, tmp_path: Path) -> None:
    """One tensor after the other keeps its old value: the engine then holds exactly that mixture.

    So every tensor reaches the place that it belongs to, and the probe sees what stayed behind.
    """
    family, seen, version = FAMILIES[trained.name], 0, 9
    new, old = weights(trained.after), weights(trained.before)
    sender = WeightSender(Link(torch.device("cpu"), 60.0))
    shutil.copy(trained.after / "config.json", tmp_path)
    names = of_first_layer(list(new))
    for version, name in enumerate(names, start=10):
        mixed = new | {name: old[name]}
        named = list(mixed.items())
        offer = make_offer(version, describe(named), "shm")
        trained.engine("receive_weights", sender.send(offer, [named]))
        batch = trained.engine("probe", PROMPTS, 24, 1.0, version)
        save_file(mixed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        oracle = load_causal_lm(str(tmp_path), dtype="float32", attention=family.attention)
        assert worst(batch, plain_logprobs(oracle, batch)) <= family.tolerance, name
        seen += trained.difference(batch) > family.tolerance
    assert seen >= len(names) - 2  # a key's bias shifts all scores alike: that changes nothing
    with pytest.raises(StaleEngineError):  # nobody admitted it
        trained.engine("generate", requests(), Sampling(1.0, 4), version)
    left_out = list(new.items())[:-1]
    offer = make_offer(90, describe(left_out), "shm")
    with pytest.raises(WeightSyncError, match="do not fit the model"):
        trained.engine("receive_weights", sender.send(offer, [left_out]))


def rankings() -> RankingStep:
    rng = np.random.default_rng(2)
    rows = [rng.integers(3, 90, n).astype(np.int32) for n in (7, 9, 5, 12)]
    return RankingStep(
        ((Ranking(0, Ragged.from_rows(rows, np.int32), np.array([1, 2, 3, 4])),),), 1
    )


def test_a_reward_model_of_the_family(trained: Trained, tmp_path: Path) -> None:
    family, trainer = FAMILIES[trained.name], trained.trainer
    spec = TrainModelSpec(str(trained.before), LARGE, attention=family.attention, head="random")
    if not family.head:
        with pytest.raises(ConfigError, match="no token-classification class"):
            trainer(("critic", "load"), spec)
        return
    trainer(("critic", "load"), spec)
    assert trainer(("critic", "train_rankings"), rankings()).applied
    batch = texts(5)
    before = trainer(("critic", "score"), batch)
    trainer(("critic", "shift_bias"), 0.75)
    scores = trainer(("critic", "score"), batch)
    np.testing.assert_allclose(before - scores, 0.75, atol=1e-5)
    trainer(("critic", "save"), str(tmp_path), str(trained.before))
    plain, info = AutoModelForTokenClassification.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation=family.attention
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        wanted = [
            float(plain.eval()(torch.tensor(row.astype(np.int64))[None]).logits[0, -1, 0])
            for row in batch.tokens.rows()
        ]
    np.testing.assert_allclose(scores, wanted, atol=1e-4)

"""Every option of a model arrives at its loader under its own name, and weights leave as they are.

Loaders and senders are stand-ins that write down what they are given; no two options are equal.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_trainer_updates import ready

from workers.errors import ConfigError
from workers.model_folders import shape
from workers.models import frozen_model
from workers.models import load as models
from workers.records.arrays import Ragged
from workers.records.specs import (
    FrozenModelSpec,
    GroupSpec,
    PartSpec,
    RewardSpec,
    TermSpec,
    TrainModelSpec,
)
from workers.records.weights import TensorMeta
from workers.roles.critic import CriticWorker
from workers.roles.policy import PolicyWorker
from workers.roles.reward import RewardWorker
from workers.scorers import model
from workers.scorers.source import Batch, make_scorer
from workers.weights.transfer import WeightReceiver
from workers.weights.transport import Link

GROUP = GroupSpec(2, "bfloat16", "cpu", 1, 1.0, 1, 77)
OPTIONS: dict[str, Any] = {"dtype": "bfloat16", "attention": "eager", "packed": True}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Folder and options of every model that was loaded."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def load(path: str, **options: Any) -> str:
        seen.append((path, options))
        return "model"

    monkeypatch.setattr(models, "load_scalar", load)
    monkeypatch.setattr(models, "load_causal_lm", load)
    return seen


def train_spec(**options: Any) -> TrainModelSpec:
    return TrainModelSpec("FOLDER", None, **{"attention": "eager", "packed": True, **options})  # type: ignore[arg-type]


def test_a_policy_is_loaded_as_its_spec_says(loads: list[tuple[str, dict[str, Any]]]) -> None:
    assert PolicyWorker(0)._build(train_spec(dropout=0.3), GROUP) == "model"
    assert loads == [("FOLDER", {**OPTIONS, "dropout": 0.3})]


def test_an_estimator_that_a_rank_cannot_import_is_told_before_the_model_is_loaded(
    loads: list[tuple[str, dict[str, Any]]],
) -> None:
    with pytest.raises(ConfigError, match="no module 'not_on_this_node'"):
        PolicyWorker(0)._build(train_spec(estimator=PartSpec("not_on_this_node:E")), GROUP)
    assert loads == []
    PolicyWorker(0)._build(train_spec(estimator=PartSpec("gae")), GROUP)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_documents_share_rows_of_a_packed_model_and_of_one_that_keeps_them_apart(
    loads: Any, monkeypatch: pytest.MonkeyPatch, packed: bool, apart: bool
) -> None:
    monkeypatch.setattr(models, "keeps_documents_apart", lambda model: model == "model" and apart)
    worker = ready(PolicyWorker(0))
    worker._build(train_spec(packed=packed), GROUP)
    assert worker.shares_rows() is (packed or apart)


@pytest.mark.parametrize(("own", "expected"), [(0, 3), (2, 2)])
def test_a_trainer_computes_with_the_threads_of_its_model_or_else_of_its_group(
    monkeypatch: pytest.MonkeyPatch, own: int, expected: int
) -> None:
    class Loaded(Exception):
        pass

    def build(_spec: Any, _group: Any) -> None:
        raise Loaded

    monkeypatch.setitem(
        sys.modules, "workers.training.deepspeed_engine", SimpleNamespace(TrainEngine=None)
    )
    worker = PolicyWorker(0)
    monkeypatch.setattr(worker, "_build", build)
    worker._group = replace(GROUP, threads=3)
    before = torch.get_num_threads()
    try:
        with pytest.raises(Loaded):
            worker.load(train_spec(threads=own))
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_a_critic_is_loaded_as_its_spec_says(loads: list[tuple[str, dict[str, Any]]]) -> None:
    assert CriticWorker(0)._build(train_spec(head="random"), GROUP) == "model"
    assert loads == [("FOLDER", {**OPTIONS, "head": "random", "seed": 77})]


def reward_spec(bridge: str, budget: int) -> RewardSpec:
    model = FrozenModelSpec("FOLDER", "bfloat16", "cpu", 1, budget, attention="eager", packed=True)
    return RewardSpec((TermSpec("model", {"bridge": bridge}),), "", "POLICY", model)


def test_a_reward_model_is_loaded_as_its_spec_says(
    loads: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bridged: list[tuple[Any, ...]] = []
    monkeypatch.setattr(model, "make_bridge", lambda *given: bridged.append(given))
    monkeypatch.setattr(frozen_model, "FrozenModel", lambda loaded, spec: (loaded, spec))
    monkeypatch.setattr(shape, "read_shape", lambda _: SimpleNamespace(positions=9))
    spec = reward_spec("tokens", 64)
    info = RewardWorker(4).load(spec)
    assert (info.role, info.rank, info.device) == ("reward", 4, "cpu")
    assert loads == [("FOLDER", OPTIONS)]
    assert bridged == [(model.Settings(bridge="tokens"), "POLICY", spec.model)]


def test_a_row_without_tokens_has_no_reward_and_keeps_the_reason_it_came_with(
    loads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Ragged.from_rows([[], [], [1, 2], [3, 4, 5]], "int32")
    reasons = ["", "does not fit", "", ""]
    monkeypatch.setattr(model, "make_bridge", lambda *_: lambda _: (rows, reasons))
    stub = SimpleNamespace(passes=None, budget=9, device="cpu")
    monkeypatch.setattr(frozen_model, "FrozenModel", lambda *_: stub)
    monkeypatch.setattr(shape, "read_shape", lambda _: SimpleNamespace(positions=2))
    scored: list[list[list[int]]] = []

    def score(passes: Any, fitting: Ragged, budget: int, device: str) -> Any:
        scored.append([row.tolist() for row in fitting.rows()])
        assert (budget, device) == (9, "cpu")
        return np.array([1.5], np.float32)

    monkeypatch.setattr(frozen_model, "sequence_scores", score)
    given = reward_spec("text", 9)
    scorer, needs = make_scorer(given, given.terms[0])
    assert (needs.text, needs.model) == (True, True)
    found = scorer(Batch(None, []))  # type: ignore[arg-type]
    assert scored == [[[1, 2]]]
    assert found.reasons == [
        "reward model: no tokens", "does not fit", "", "reward model: more than its 2 tokens",
    ]  # fmt: skip
    assert np.isnan(found.values).tolist() == [True, True, False, True]
    assert found.values[2] == 1.5


META = TensorMeta("weight", "float32", (2,))
WEIGHT = torch.tensor([0.5, -2.0])


@pytest.fixture
def sending(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A policy of one weight, whose name in the model's folder is another."""
    worker = ready(PolicyWorker(0))
    worker.engine.module, worker.engine.metas = "MODULE", ("meta",)
    worker.engine.device = torch.device("cpu")
    bucket = [("live", WEIGHT)]
    monkeypatch.setattr(worker, "_weights", lambda: iter([bucket]))
    monkeypatch.setattr(
        "workers.model_folders.saved_form.checkpoint_metas",
        lambda module, metas: (META,) if (module, metas) == ("MODULE", ("meta",)) else (),
    )
    monkeypatch.setattr(
        "workers.model_folders.saved_form.checkpoint_form",
        lambda module, given: iter([[("weight", tensor) for _, tensor in given]]),
    )
    return worker


def test_weights_are_published_in_one_mapping_that_stays(sending: Any) -> None:
    offers = [sending.publish_weights(n, "shm") for n in (4, 5)]
    assert [(each.version, each.metas) for each in offers] == [(4, (META,)), (5, (META,))]
    assert offers[0].location == offers[1].location
    receiver = WeightReceiver(Link(torch.device("cpu"), 1.0))
    assert [(n, w.tolist()) for b in receiver.receive(offers[1]) for n, w in b] == [
        ("weight", WEIGHT.tolist())
    ]
    assert receiver.checksum == offers[1].checksum
    sending._sender.close()


@pytest.mark.parametrize("transport", ["gloo", "nccl"])
def test_weights_that_travel_later_are_offered_with_their_sizes(
    sending: Any, transport: str
) -> None:
    offer = sending.publish_weights(4, transport)
    assert (offer.version, offer.metas, offer.transport) == (4, (META,), transport)
    assert offer.bucket_bytes == sending._group.weight_bucket_bytes
    assert offer.checksum == ""


def test_a_rank_that_sends_nothing_still_gathers_every_bucket(
    sending: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[int] = []
    monkeypatch.setattr(sending, "_weights", lambda: (gathered.append(n) for n in range(3)))
    sending.rank = 1
    assert sending.publish_weights(4, "shm") is None
    assert gathered == [0, 1, 2]

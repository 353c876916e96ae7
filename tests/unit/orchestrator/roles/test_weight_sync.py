"""A weight sync after engines were lost: who takes part, and what the parity of the rest says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orchestrator.config.engines import RolloutConfig
from orchestrator.roles.interfaces import Fields, Rollouts
from orchestrator.roles.weight_sync import Parity, WeightSync, measure_parity
from workers.generation.engine import Generated, pack
from workers.records.arrays import Ragged
from workers.records.generation import Finish, GenerationRequest
from workers.records.training import TokenField
from workers.records.weights import GroupAddress, WeightReceipt

PROMPTS = [(1, 2), (1, 3)]


class There:
    def __init__(self, value: Any = None) -> None:
        self.value = value

    def result(self) -> Any:
        return self.value


def probe(*differences: list[float]) -> Parity:
    """What is measured where each engine differs so from the trainer, one number a prompt."""
    requests = [
        GenerationRequest(i, tokens, (2 * rank + i,), (0,))
        for rank in range(len(differences))
        for i, tokens in enumerate(PROMPTS)
    ]
    flat = [each for engine in differences for each in engine]
    batch = pack(requests, [Generated([5], [-1.0 - each], Finish.STOP) for each in flat], 3)
    field = TokenField(batch.ids, Ragged.from_rows([[-1.0]] * len(flat), np.float32))
    rollout = SimpleNamespace(
        probe=lambda *_: There(Rollouts.of("shard", batch.summary())), fetch=lambda _: There(batch)
    )
    scorer = SimpleNamespace(
        size=1, packed=False, logprobs=lambda *_: There(Fields(("field",), (batch.ids,))),
        fetch=lambda _: There([field]),
    )  # fmt: skip
    config: Any = RolloutConfig(parity_prompts=2, parity_tokens=1)
    found: Any = (rollout, scorer)
    return measure_parity(*found, config, PROMPTS, 3, 64)


def test_the_engine_that_differs_most_stands_for_all() -> None:
    found = probe([0.125, 0.375], [0.3125, 0.3125])
    assert found.max_difference == pytest.approx(0.375)
    assert found.mean_difference == pytest.approx(0.3125)  # of the second


def test_engines_that_agree_give_the_figures_of_one_bit_by_bit() -> None:
    one = [0.1, 0.7]
    assert probe(one) == probe(one, one) == probe(one, one, one)
    assert np.isnan(probe(one, [0.1, float("nan")]).max_difference)


@pytest.mark.parametrize(
    ("transport", "groups"),
    [("gloo", [(2, [0, 1]), (1, [1]), (2, [0, 1])]), ("shm", [])],
)
def test_the_transfer_group_is_formed_again_when_engines_leave_or_join(
    monkeypatch: pytest.MonkeyPatch, transport: str, groups: list[Any]
) -> None:
    ranks, seen = [0, 1], list[Any]()
    members = iter([[0, 1], [1], [1], [0, 1]])

    def join() -> None:
        ranks[:] = next(members)

    def address(receivers: int, _: str) -> GroupAddress:
        seen.append((receivers, list(ranks)))
        return GroupAddress("here", 1, receivers + 1)

    class Engines(SimpleNamespace):
        @property
        def ranks(self) -> list[int]:
            return list(ranks)

    rollout: Any = Engines(join=join, connect=lambda _: There(), refresh=None)
    policy: Any = SimpleNamespace(transfer_address=address, connect=lambda _: There())
    sync = WeightSync(policy, rollout, RolloutConfig(transport=transport), PROMPTS, 64)
    done = (WeightReceipt(1, "sum", 8, 0.0), Parity(0.0, 0.0, 0.0), 0.0)
    monkeypatch.setattr(sync, "_transact", lambda _, judged: done)
    for version in range(4):
        sync.run(version)
    assert seen == groups

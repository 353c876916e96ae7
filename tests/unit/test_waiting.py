"""Which error a failed wait ends in, with Ray's two calls played by a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError, RayTaskError

from orchestrator import waiting
from orchestrator.waiting import Pending, Position, everything
from workers.errors import RoleDiedError, RoleError


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch):
    """Waits for ranks that end like this, in the order of the table."""

    def wait(refs: Sequence[str], **_: Any) -> tuple[list[str], list[str]]:
        return [refs[0]], list(refs[1:])

    def of(**ends: Any) -> list[Any]:
        def get(ref: str, timeout: float) -> Any:
            if isinstance(ends[ref], Exception):
                raise ends[ref]
            return ends[ref]

        monkeypatch.setattr(waiting.ray, "wait", wait)
        monkeypatch.setattr(waiting.ray, "get", get)
        names = [f"policy rank {n}" for n in range(len(ends))]
        return Pending(list(ends), names, "policy: update", 60, Position(), everything).result()

    return of


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("update", "traceback", cause)


def test_results_stand_in_the_order_of_the_ranks(outcome):
    assert outcome(a=1, b=2) == [1, 2]


def test_a_dead_peer_is_named_and_not_its_victim(outcome):
    with pytest.raises(RoleDiedError, match="policy rank 2 ended") as caught:
        outcome(
            a=task_error(RuntimeError("Connection closed by peer")),
            b=task_error(RuntimeError("Connection closed by peer")),
            c=ActorDiedError(),
        )
    assert caught.value.where == "policy rank 2"


def test_without_a_dead_peer_the_first_error_stands(outcome):
    with pytest.raises(RoleError, match="policy rank 0 failed: RuntimeError: no such op"):
        outcome(a=task_error(RuntimeError("no such op")), b=1)


def test_memory_that_ran_out_says_what_to_lower(outcome):
    with pytest.raises(RoleError, match="policy rank 0 ran out of memory") as caught:
        outcome(a=task_error(torch.OutOfMemoryError("CUDA out of memory")))
    assert "micro_batch_tokens" in caught.value.mend

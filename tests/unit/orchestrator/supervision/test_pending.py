"""Which error a failed wait ends in, with Ray's two calls played by a table."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    OutOfDiskError,
    OutOfMemoryError,
    RayTaskError,
)

from orchestrator.supervision import ray_backend
from orchestrator.supervision.backend import Call
from orchestrator.supervision.pending import Arrivals, EngineLine, Pending, Position, everything
from orchestrator.supervision.ray_backend import RayBackend
from workers.errors import DeadlineError, RoleDiedError, RoleError
from workers.process.heartbeat import Pulse


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

        monkeypatch.setattr(ray_backend.ray, "wait", wait)
        monkeypatch.setattr(ray_backend.ray, "get", get)
        names = [f"policy rank {n}" for n in range(len(ends))]
        backend = RayBackend()
        return Pending(
            backend, list(ends), names, "policy: update", 60, Position(), everything
        ).result()

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
    assert "micro_batch_tokens" in caught.value.fix


def test_a_worker_that_ray_ended_for_its_memory_died_of_that(outcome):
    said = "1 worker(s) were killed due to the node running low on memory\nEviction Stats:\n(global"
    with pytest.raises(RoleDiedError, match="Ray ended it because the machine ran out") as caught:
        outcome(a=OutOfMemoryError(said))
    assert "RAY_memory_usage_threshold): 1 worker(s) were killed due to" in caught.value.what
    assert "Eviction" not in caught.value.what
    assert caught.value.where == "policy rank 0"


def test_a_worker_whose_node_is_gone_died_with_it(outcome):
    victim = task_error(RuntimeError("Connection closed by peer"))
    with pytest.raises(RoleDiedError, match=r"policy rank 1 ended: .*; its node died"):
        outcome(a=victim, b=NodeDiedError("its node died"))


@pytest.mark.parametrize("error", [OutOfDiskError(), task_error(OutOfDiskError())])
def test_a_disk_without_room_for_objects_is_named(outcome, error: Exception):
    with pytest.raises(RoleError, match=r"temporary folder .*/rehearsal-") as caught:
        outcome(a=error)
    assert "TMPDIR" in caught.value.fix


class Stream:
    """A streaming call: what it yields, one after the other."""

    def __init__(self, *items: Any) -> None:
        self._items = iter(items)

    def __next__(self) -> Any:
        return next(self._items)


@pytest.fixture
def arrivals(monkeypatch: pytest.MonkeyPatch):
    """Listens to streams, of which the last one added is always the first to be ready."""

    def get(ref: Any, timeout: float) -> Any:
        if isinstance(ref, Exception):
            raise ref
        return ref

    monkeypatch.setattr(ray_backend.ray, "wait", lambda refs, **_: ([refs[-1]], refs[:-1]))
    monkeypatch.setattr(ray_backend.ray, "get", get)
    return Arrivals(RayBackend(), "rollout: generate", 60, Position())


def test_parts_come_as_they_are_ready_and_then_no_more(arrivals):
    arrivals.add(Stream("A", "a"), 0, "rollout rank 0")
    arrivals.add(Stream("B", "b", "C", "c"), 1, "rollout rank 1")
    assert [arrivals.next() for _ in range(4)] == [
        (1, "b", "B"), (1, "c", "C"), (0, "a", "A"), None,
    ]  # fmt: skip


def test_late_replies_of_a_process_that_is_gone_are_counted_and_not_taken(arrivals):
    gone, lives = Stream("A", "a", "B", "b", "C", ActorDiedError()), Stream("D", "d")
    arrivals.add(gone, 0, "rollout rank 0")
    assert arrivals.next() == (0, "a", "A")
    arrivals.add(lives, 1, "rollout rank 1")
    assert arrivals.forget(0) == 1  # b; C came without its other half
    assert [arrivals.next(), arrivals.next()] == [(1, "d", "D"), None]


def test_a_call_can_join_after_others_have_ended(arrivals):
    arrivals.add(Stream(), 0, "rollout rank 0")
    assert arrivals.next() is None
    arrivals.add(Stream("D", "d"), 0, "rollout rank 0")
    assert arrivals.next() == (0, "d", "D")


def test_an_engine_that_fails_or_dies_in_its_stream_is_named(arrivals):
    arrivals.add(Stream(task_error(RuntimeError("no such op"))), 0, "rollout rank 0")
    with pytest.raises(RoleError, match="rollout rank 0 failed: RuntimeError"):
        arrivals.next()
    arrivals.add(Stream("B", "b", ActorDiedError()), 1, "rollout rank 1")
    arrivals.next()
    with pytest.raises(RoleDiedError, match="rollout rank 1 ended"):
        arrivals.next()


def test_a_stream_that_stays_silent_is_late(arrivals, monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []

    def wait(refs: list[Any], *, timeout: float, **_: Any) -> tuple[list[Any], list[Any]]:
        waits.append(timeout)
        return [], refs

    clock = SimpleNamespace(monotonic=lambda: sum(waits))  # a wait passes its time at once
    monkeypatch.setattr("orchestrator.supervision.pending.time", clock)
    monkeypatch.setattr(ray_backend.ray, "wait", wait)
    arrivals.add(Stream("A", "a"), 0, "rollout rank 0")
    with pytest.raises(DeadlineError, match="no answer within 60 s: rollout: generate") as caught:
        arrivals.next()
    assert caught.value.where == "rollout rank 0"
    assert sum(waits) == pytest.approx(60)


class FakeEngine:
    """A back end whose calls return their own names; the test says which of these are ready."""

    def __init__(self) -> None:
        self.verb, self.ready, self.asked = "", {"pulse", "alive"}, []
        self.beats = 0

    def health(self, worker: None, what: str) -> str:
        self.asked.append(what)
        return what

    def start(self, worker: None, call: Call) -> str:
        return self.health(worker, call.verb)

    def wait(self, refs: list[str], *_: Any, **__: Any) -> list[str]:
        return [ref for ref in refs if ref in self.ready]

    def get(self, ref: str, seconds: float) -> Any:
        return Pulse(self.verb, self.beats, 0.0, ()) if ref == "pulse" else False


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def test_an_idle_engine_has_to_sample_a_token(engine: FakeEngine):
    line = EngineLine(engine, None, "rollout rank 0")
    line.ask()
    assert line.answer() is not None  # what it does is not known before
    line.ask()
    assert engine.asked == ["pulse", "pulse", "alive"]
    engine.ready.remove("alive")
    for _ in range(3):
        assert line.answer() is None  # the process answers, and the engine does not
        line.ask()
    assert engine.asked.count("alive") == 1
    engine.ready.add("alive")
    assert line.answer() is not None


def test_a_token_that_takes_its_time_is_no_sign_of_death_while_the_engine_steps(
    engine: FakeEngine,
):
    line = EngineLine(engine, None, "rollout rank 0")
    line.ask()
    line.answer()
    engine.ready.remove("alive")
    engine.verb = "alive"
    for engine.beats in (1, 2):
        line.ask()
        assert line.answer() is not None
    line.ask()
    assert line.answer() is None


def test_a_token_that_queues_behind_work_is_not_waited_for(engine: FakeEngine):
    line = EngineLine(engine, None, "rollout rank 0")
    line.ask()
    line.answer()
    engine.ready.remove("alive")
    line.ask()
    engine.verb = "generate_parts"
    assert line.answer() is not None
    engine.verb = "alive"
    line.ask()
    assert line.answer() is None

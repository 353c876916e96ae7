"""Calls of the rollout role: interrupted, joined, given up; and what the engine is handed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from countdown import Countdown, request
from test_rollout_worker import make_spec, offer, write_checkpoint

import workers.roles.rollout
from workers.errors import DataError, StaleEngineError, UnsupportedPlatformError, WeightSyncError
from workers.generation.engine import Generated, Sample
from workers.records.generation import (
    Delivery,
    EngineState,
    GenerationCall,
    GenerationRequest,
    Sampling,
)
from workers.records.specs import RolloutSpec
from workers.roles.rollout import RolloutWorker, engine_environment
from workers.weights.transports.shm import SharedMemorySender


class Engine(Countdown):
    """Draws 1, 2, 3 ...; `each` is called after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.each: Callable[[int], None] = lambda step: None
        self.joined: list[tuple[Any, int]] = []

    def step(self) -> list[tuple[int, Generated]]:
        finished = super().step()
        self.each(self.steps)
        return finished

    def connect(self, address: Any, group_rank: int) -> None:
        self.joined.append((address, group_rank))

    def receive(self, offer: Any) -> str:
        assert not self.running, "weights are replaced while nothing is under way"
        return "sum"

    def close(self) -> None:
        pass


class Started:
    """A worker that serves version 3, and the engine of its last start."""

    def __init__(self, folder: Path) -> None:
        self.spec = replace(make_spec(write_checkpoint(folder)), max_prompt_tokens=3)
        self.worker = RolloutWorker(6)
        self.start()

    def start(self, **options: Any) -> Engine:
        self.spec = replace(self.spec, **options)
        self.worker.start(self.spec, 3)
        return self.engine

    @property
    def engine(self) -> Engine:
        assert self.worker._pool is not None
        engine = self.worker._pool.engine
        assert isinstance(engine, Engine)
        return engine

    def pause_after(self, steps: int) -> None:
        self.engine.each = lambda step: self.worker.pause() if step == steps else None

    def parts(self, made: GenerationCall) -> list[list[int]]:
        return [batch.ids.tolist() for batch in self.worker.generate_parts(made)]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Started:
    monkeypatch.setattr(workers.roles.rollout, "_make_engine", lambda spec: Engine())
    for name in engine_environment(make_spec(tmp_path)):
        monkeypatch.setenv(name, "other")
    return Started(tmp_path)


def call(number: int, length: int, version: int = 3) -> GenerationCall:
    """One sequence of so many tokens, whose id is ten times the number of the call."""
    return GenerationCall(
        number, [request(length, 10 * number)], Sampling(0.7, 8), version, Delivery()
    )


def test_the_environment_of_an_engine_is_set_before_it_is_made(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = engine_environment(started.spec)
    seen: list[dict[str, str]] = []

    def make(spec: RolloutSpec) -> Engine:
        seen.append({name: os.environ[name] for name in wanted})
        return Engine()

    monkeypatch.setattr(workers.roles.rollout, "_make_engine", make)
    for name in wanted:
        monkeypatch.setenv(name, "other")
    started.start()
    assert seen == [wanted]


def test_an_interrupted_call_goes_on_under_weights_that_were_admitted(started: Started) -> None:
    worker = started.worker
    started.pause_after(2)
    assert started.parts(call(1, 5)) == []
    assert not started.engine.running
    worker.receive_weights(offer(4))
    with pytest.raises(StaleEngineError, match="holds version 4"):
        list(worker.proceed(1, 4))
    with pytest.raises(StaleEngineError, match="rollout worker 6"):
        worker.admit(5)
    worker.admit(4)
    with pytest.raises(StaleEngineError, match="asked for version 3"):
        list(worker.proceed(1, 3))
    (batch,) = worker.proceed(1, 4)
    assert (batch.ids.tolist(), batch.versions.tolist()) == ([10], [[3, 4]])
    assert batch.response(0) == [1, 2, 3, 4, 0]
    assert list(worker.proceed(1, 4)) == []  # it is done, and nothing of it is held
    assert list(worker.proceed(2, 4)) == []  # nobody knows of it
    assert {s.temperature for s in started.engine.samplings} == {0.7}


def test_a_call_of_another_version_is_refused_before_it_is_held(started: Started) -> None:
    for refused in (started.worker.announce, started.worker.generate_parts):
        with pytest.raises(StaleEngineError):
            list(refused(call(1, 5, version=4)) or ())
    assert list(started.worker.proceed(1, 3)) == []


@pytest.mark.parametrize("again", [False, True])
def test_announced_calls_are_sampled_beside_the_one_that_runs(
    started: Started, again: bool
) -> None:
    if again:  # numbers start over with the engine
        started.parts(call(5, 1))
    engine = started.start(join_running=True)
    for number, length in ((0, 2), (1, 3)):
        started.worker.announce(call(number, length))
    assert started.parts(call(0, 2)) == [[0]]
    assert (len(engine.launched), engine.running) == (2, True)
    assert started.parts(call(1, 3)) == [[10]]
    assert engine.steps == 3  # one after the other they would have been 2 + 3
    assert len(engine.launched) == 2


def test_calls_wait_for_their_turn_where_none_may_join(started: Started) -> None:
    engine = started.start(join_running=False)
    started.worker.announce(call(1, 3))
    assert started.parts(call(0, 2)) == [[0]]
    assert (len(engine.launched), engine.running) == (1, False)
    (batch,) = started.worker.proceed(1, 3)  # it was held from then on
    assert batch.ids.tolist() == [10]


def test_an_announcement_after_the_turn_of_its_call_is_passed_over(started: Started) -> None:
    engine = started.start(join_running=True)
    assert started.parts(call(2, 1)) == [[20]]
    started.worker.announce(call(2, 1))
    assert started.parts(call(3, 1)) == [[30]]
    assert len(engine.launched) == 2


def test_given_up_calls_leave_nothing_behind(started: Started) -> None:
    engine = started.start(join_running=True)
    started.worker.announce(call(1, 6))
    assert started.parts(call(0, 2)) == [[0]]
    started.worker.announce(call(2, 6))
    assert engine.running
    started.worker.forget()
    assert not engine.running
    assert [list(started.worker.proceed(number, 3)) for number in (0, 1, 2)] == [[], [], []]
    assert started.parts(call(3, 1)) == [[30]]
    assert len(engine.launched) == 3  # calls 0 and 1, then 3 alone


def test_a_new_engine_knows_nothing_of_calls_and_pauses_before_it(started: Started) -> None:
    started.pause_after(1)
    started.parts(call(1, 5))
    started.start(join_running=True)
    started.worker.announce(call(2, 5))
    started.worker.pause()
    engine = started.start()
    assert list(started.worker.proceed(1, 3)) == []
    assert started.parts(call(0, 2)) == [[0]]
    assert len(engine.launched) == 1


def test_an_engine_shows_that_it_lives_by_one_token(started: Started) -> None:
    engine = started.start(join_running=True)
    assert started.worker.alive()
    assert engine.launched == [[Sample((started.spec.eos_token_id,), 0)]]
    assert (engine.steps, engine.running) == (1, False)
    assert engine.samplings == [Sampling(1.0, 1)]


def test_an_engine_with_calls_under_way_shows_it_by_their_tokens(started: Started) -> None:
    engine = started.start(join_running=True)
    started.worker.announce(call(1, 6))
    started.parts(call(0, 2))
    assert started.worker.alive()
    assert (engine.steps, len(engine.launched)) == (3, 2)


def test_an_engine_that_serves_nothing_does_not_live(started: Started) -> None:
    assert not RolloutWorker(0).alive()
    assert RolloutWorker(0).state() == EngineState(-1, "empty")
    started.worker.receive_weights(offer(4))
    assert not started.worker.alive()
    assert started.engine.launched == []


def test_weights_replace_what_calls_that_joined_are_drawing_from(started: Started) -> None:
    started.start(join_running=True)
    started.worker.announce(call(1, 6))
    started.parts(call(0, 2))
    started.worker.receive_weights(offer(4))  # the engine asserts that nothing is under way
    started.worker.admit(4)
    (batch,) = started.worker.proceed(1, 4)
    assert batch.versions.tolist() == [[3, 4]]


def test_a_probe_is_sampled_as_it_is_asked(started: Started) -> None:
    batch = started.worker.probe([(2,), (4, 5)], 3, 0.5, 3)
    assert batch.prompt_ids.tolist() == [0, 1]
    assert batch.ids.tolist() == [12, 13]  # of rank 6: no other engine has these
    assert started.engine.samplings == [Sampling(0.5, 3)]


def test_what_does_not_fit_is_refused_by_every_verb_that_samples(started: Started) -> None:
    wide = GenerationRequest(7, (1, 2, 3, 4), (0,), (0,))  # 3 tokens are allowed
    made = GenerationCall(1, [wide], Sampling(0.7, 8), 3, Delivery())
    for refused in (
        lambda: started.worker.generate([wide], Sampling(0.7, 8), 3),
        lambda: list(started.worker.generate_parts(made)),
        lambda: started.worker.announce(made),
        lambda: started.worker.probe([wide.prompt_tokens], 1, 1.0, 3),
    ):
        with pytest.raises(DataError, match="4 prompt tokens"):
            refused()


def test_an_engine_joins_a_transfer_group_by_its_rank(started: Started) -> None:
    started.worker.connect("ADDRESS", 2)  # type: ignore[arg-type]
    assert started.engine.joined == [("ADDRESS", 2)]


def test_a_loaded_folder_is_served_and_its_mapping_is_closed(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []  # mappings that were open until then
    close = SharedMemorySender.close

    def noted(sender: SharedMemorySender) -> None:
        closed.extend([sender._descriptor] * (sender._descriptor >= 0))
        close(sender)

    monkeypatch.setattr(SharedMemorySender, "close", noted)
    receipt = started.worker.load_checkpoint(started.spec.checkpoint, 9)
    assert (receipt.version, receipt.checksum) == (9, "sum")
    assert started.worker.state() == EngineState(9, "admitted")
    monkeypatch.setattr(
        started.engine, "receive", lambda offer: (_ for _ in ()).throw(WeightSyncError("late"))
    )
    with pytest.raises(WeightSyncError, match="late"):
        started.worker.load_checkpoint(started.spec.checkpoint, 10)
    assert started.worker.state() == EngineState(9, "empty")
    assert len(closed) == 2


def test_the_engine_is_the_one_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in (("transformers", "TransformersEngine"), ("vllm", "VllmEngine")):
        module = SimpleNamespace(**{kind: lambda spec, name=name: (name, spec.engine)})
        monkeypatch.setitem(sys.modules, f"workers.generation.{name}_engine", module)
    for name in ("transformers", "vllm"):
        spec = replace(make_spec(Path()), engine=name)
        assert workers.roles.rollout._make_engine(spec) == (name, name)
    monkeypatch.setitem(sys.modules, "workers.generation.vllm_engine", None)
    with pytest.raises(UnsupportedPlatformError, match=r"rollout\.engine=transformers"):
        workers.roles.rollout._make_engine(make_spec(Path()))


def test_an_engine_is_imported_ahead_and_its_absence_told_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def absent(name: str) -> None:
        asked.append(name)
        raise ImportError(name)

    monkeypatch.setattr(workers.roles.rollout.importlib, "import_module", absent)
    RolloutWorker(0).prepare("vllm")
    assert asked == ["workers.generation.vllm_engine"]

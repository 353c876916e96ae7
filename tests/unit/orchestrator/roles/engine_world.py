"""A rollout group over engines without processes: `make` is the fixture, `World` what they do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from orchestrator.roles import rollout_group
from orchestrator.roles.group import Launch
from orchestrator.roles.rollout_group import RolloutGroup
from orchestrator.supervision import pending
from orchestrator.supervision.backend import Call, WorkerGoneError
from orchestrator.supervision.heartbeats import Watch
from orchestrator.supervision.pending import Position
from orchestrator.supervision.worker_life import Rules
from workers.errors import RoleDiedError
from workers.process.call_timing import CallSpan, Reply, clock_name
from workers.process.heartbeat import Pulse
from workers.records.generation import (
    GenerationCall,
    GenerationRequest,
    RolloutSummary,
    Sampling,
)
from workers.records.processes import RoleInfo
from workers.records.specs import RolloutSpec

SAMPLING = Sampling(temperature=1.0, max_tokens=4)


class Ref:
    """One answer: not there while `value` is None."""

    def __init__(self, value: Any = None) -> None:
        self.value = value


class Stream:
    """A streaming call: what has come, and whether it has ended."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.ended = False

    @property
    def value(self) -> Any:
        return True if self.items or self.ended else None

    def __next__(self) -> Any:
        if self.items:
            return self.items.pop(0)
        raise StopIteration


@dataclass
class World:
    """Engines without processes; `events` is what they were asked, and what became known."""

    events: list[str] = field(default_factory=list)
    now: float = 0.0
    noticed: set[int] = field(default_factory=set)  # ranks that the next probe finds gone
    mute: set[str] = field(default_factory=set)  # "verb rank" that does not answer
    open: dict[int, list[tuple[GenerationCall, Stream]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    before: dict[str, Callable[[], object]] = field(default_factory=dict)  # "verb rank": happens
    room: set[int] = field(default_factory=set)  # extra ranks that the cluster has a place for
    beside: set[str] = field(default_factory=set)  # verbs that do not queue behind others
    asked: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # "verb rank": last arguments
    refs: dict[int, list[Ref]] = field(default_factory=lambda: defaultdict(list))

    def there(self, rank: int) -> bool:
        return rank in self.room

    def give_back(self, rank: int) -> None:
        self.events.append(f"give back {rank}")
        self.room.discard(rank)

    def answer(self, rank: int, verb: str, value: Any) -> Ref:
        self.events.append(f"{verb} {rank}")
        span = CallSpan(verb, 0.0, 0.0, 0.0, clock_name())
        ref = Ref(None if f"{verb} {rank}" in self.mute else Reply(value, (span,)))
        self.refs[rank].append(ref)
        return ref

    def sample(self, rank: int, call: GenerationCall) -> Stream:
        numbers = [request.prompt_id for request in call.requests]
        self.events.append(f"ask {rank} for {numbers} of version {call.version}")
        stream = Stream()
        self.open[rank].append((call, stream))
        return stream

    def finish(self, rank: int) -> None:
        """The engine gives the first call that is open all it asks for."""
        call, stream = self.open[rank].pop(0)
        ids = np.array([i for request in call.requests for i in request.ids])
        zeros, made = np.zeros(len(ids), np.int64), np.full((len(ids), 2), call.version)
        summary = RolloutSummary(ids, zeros, zeros, zeros, zeros, made, zeros, zeros)
        stream.items = [f"{ids.tolist()}", Reply(summary, ())]
        stream.ended = True

    def die(self, rank: int) -> None:
        for _, stream in self.open.pop(rank, []):
            stream.items, stream.ended = [WorkerGoneError("its process ended")], True
        for ref in self.refs.pop(rank, []):
            ref.value = WorkerGoneError("its process ended")

    def start(self, rank: int, call: Call, *args: Any) -> Any:
        name = {"load_checkpoint": "load", "state": "tell"}.get(call.verb, call.verb)
        self.before.get(f"{name} {rank}", lambda: None)()
        self.asked[f"{name} {rank}"] = args
        self.beside |= {name} if call.beside else set()
        pid = 100 + len(self.events)
        value = RoleInfo("rollout", rank, pid, "far", "cpu") if name == "start" else True
        ref = self.answer(rank, name, value)
        return (Ref("tokens"), ref) if call.split else ref

    def stream(self, rank: int, call: Call, *args: Any) -> Stream:
        if call.verb == "generate_parts":
            return self.sample(rank, *args)
        self.events.append(f"proceed {rank} with call {args[0]} under version {args[1]}")
        stream = Stream()
        self.open[rank] = [(asked, stream) for asked, _ in self.open[rank]]
        return stream

    def tell(self, rank: int, call: Call, asked: GenerationCall) -> None:
        self.events.append(f"{call.verb} {[r.prompt_id for r in asked.requests]} to {rank}")

    def put(self, record: Any) -> Any:
        return record

    def end(self, rank: int) -> None:
        self.die(rank)

    def wait(self, refs: list[Any], count: int = 1, *_: Any, **__: Any) -> list[Any]:
        self.now += 0.125
        assert self.now < 500, "waits for what does not come"
        return [ref for ref in refs if ref.value is not None][:count]

    def get(self, ref: Any, seconds: float) -> Any:
        found = ref.value if isinstance(ref, Ref) else ref
        if isinstance(found, Exception):
            raise found
        return found


class Line:
    """The way to an engine that is well, unless the world has noticed that it is gone."""

    def __init__(self, world: World, rank: int) -> None:
        self.world, self.rank = world, rank

    def ask(self) -> None:
        pass

    def answer(self) -> Pulse:
        if self.rank in self.world.noticed:
            self.world.noticed.discard(self.rank)
            raise RoleDiedError("its process ended", where=f"rollout rank {self.rank}")
        return Pulse(verb="", beats=0, quiet_seconds=0.0, spans=())

    def stacks(self, seconds: float) -> str:
        return ""


Make = Callable[..., tuple[World, RolloutGroup]]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Two engines (or more) that serve a checkpoint as version 7."""

    def of(
        engines: int = 2, restarts: int = 3, most: int = 0, **spec: Any
    ) -> tuple[World, RolloutGroup]:
        world = World()
        monkeypatch.setattr(rollout_group.time, "sleep", lambda _: world.wait([]))
        monkeypatch.setattr(pending.time, "monotonic", lambda: world.now)

        class Engines(RolloutGroup):
            def _make(self, rank: int) -> Any:
                world.events.append(f"make {rank}")
                self._watch.add(self.name(rank), Line(world, rank))
                return rank

        def lost(name: str, error: Exception, thrown: int) -> None:
            world.events.append(f"lost {name}, {thrown} replies")

        rules = Rules(probe_seconds=1e6, probes_to_condemn=3, max_restarts=restarts,
                      window_seconds=3600.0)  # fmt: skip
        launch = Launch(
            backend=world, options=lambda _: {}, workers=engines, start_seconds=300,
            call_seconds=300, position=Position(),
            watch=Watch(rules, 600.0, clock=lambda: world.now), lost=lost,
            given_up=lambda name, _: world.events.append(f"without {name}"),
            most=most, room=world,
        )  # fmt: skip
        group = Engines(launch)
        group.start(
            RolloutSpec(
                "sft",
                "transformers",
                "float32",
                "cpu",
                8,
                8,
                4,
                1,
                0.5,
                1,
                False,
                True,
                0,
                2,
                **spec,
            ),
            7,
        ).result()
        world.events.clear()
        return world, group

    return of


def requests(count: int, first: int = 0) -> list[GenerationRequest]:
    return [GenerationRequest(n, (5, 5), (10 * n,), (n,)) for n in range(first, first + count)]


def ids(found: Any) -> list[int]:
    return found.summary.ids.tolist()

"""What the groups of one run share here: the log of their calls, faults, weights on offer."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fakes.backend import LATE
from orchestrator.roles.interfaces import Experience, Fields, Rollouts
from orchestrator.supervision.backend import WorkerGoneError
from orchestrator.supervision.pending import Pending, Position
from workers.errors import RehearsalError
from workers.records.environment import Ask, Told


@dataclass(frozen=True)
class Event:
    """A call was started, or its result was awaited."""

    kind: str  # "start" | "result"
    name: str  # "role.verb"
    facts: dict[str, Any] = field(default_factory=dict)  # the arguments of the verb, at its start


@dataclass
class Faults:
    """What goes wrong; nothing by default."""

    failed_rewards: Callable[[int], str] = lambda _: ""  # sequence id -> reason, "" = none
    dead: set[str] = field(default_factory=set)  # "role.verb": the process ends in this call
    deaths: dict[str, set[int]] = field(default_factory=dict)  # "role.verb" -> in which calls of it
    gone: set[str] = field(default_factory=set)  # roles whose process has ended that way
    late: set[str] = field(default_factory=set)  # "role.verb": no answer before the deadline
    raising: dict[str, RehearsalError] = field(default_factory=dict)  # "role.verb" -> its error
    nan_logprobs: set[int] = field(default_factory=set)  # sequences that the policy finds NaN
    wrong_checksum: bool = False  # the last engine receives other bytes than were sent
    parity_offset: float = 0.0  # nats that engines are off in probes


class Hub:
    """One run of fakes."""

    def __init__(self, position: Position | None = None) -> None:
        self.position = position or Position()
        self.faults = Faults()
        self.events: list[Event] = []
        self.calls: Counter[str] = Counter()  # of each "role.verb", from 1 on
        self.wire: dict[int, torch.Tensor] = {}  # version -> weights on offer
        # What an environment says to a turn; at most so many turns per call, 0 = all.
        self.environment: Callable[[Ask], Told] = lambda ask: Told(ask.id, done=True)
        self.steps_per_call = 0
        self.keeps_documents_apart = True  # a bigram model does, but for their first tokens

    def names(self, kind: str = "start") -> list[str]:
        """Names of the events of one kind, in order."""
        return [event.name for event in self.events if event.kind == kind]

    def facts(self, name: str) -> list[dict[str, Any]]:
        """The facts of every start of one call."""
        return [e.facts for e in self.events if e.kind == "start" and e.name == name]

    def at(self, kind: str, name: str, after: int = 0) -> int:
        """Index of the first such event at or after `after`."""
        for index in range(after, len(self.events)):
            if (self.events[index].kind, self.events[index].name) == (kind, name):
                return index
        raise AssertionError(f"no {kind} of {name} after event {after}")

    def fault(self, role: str, method: str) -> Exception | None:
        """The error with which a call of a worker's method fails now."""
        name = f"{role}.{'generate' if method == 'generate_parts' else method}"
        if self.calls[name] in self.faults.deaths.get(name, ()):
            self.faults.gone.add(role)
        if name in self.faults.dead or role in self.faults.gone:
            return WorkerGoneError("its process was ended")
        return LATE if name in self.faults.late else self.faults.raising.get(name)


@dataclass
class _Recorded:
    """An answer whose arrival is recorded when it is awaited."""

    hub: Hub
    name: str
    answer: Any

    def result(self) -> Any:
        self.hub.events.append(Event("result", self.name))
        return self.answer.result()

    def parts(self) -> Iterator[Rollouts]:
        self.hub.events.append(Event("result", self.name))
        yield from self.answer.parts()


def recorded(kind: type[Any], hub: Hub) -> type[Any]:
    """A group that records the calls of its verbs."""
    verbs = {
        name: _recording(f"{kind.role}.{name}", verb, hub)
        for name, verb in inspect.getmembers(kind, inspect.isfunction)
        if name == "resume"
        or (name[0] != "_" and str(inspect.signature(verb).return_annotation).startswith(_ANSWERS))
    }
    return type(kind.__name__, (kind,), verbs)


_ANSWERS = ("Pending[", "Generation")


def _recording(name: str, verb: Callable[..., Any], hub: Hub) -> Callable[..., Any]:
    @functools.wraps(verb)
    def start(group: Any, *args: Any, **more: Any) -> Any:
        given = inspect.signature(verb).bind(group, *args, **more)
        given.apply_defaults()
        _, *facts = given.arguments.items()
        hub.events.append(Event("start", name, {key: _with_data(each) for key, each in facts}))
        hub.calls[name] += 1
        found = verb(group, *args, **more)
        if found is None:
            return None
        if isinstance(found, Pending) and not found._refs:  # no worker was called
            hub.events.pop()
            hub.calls[name] -= 1
            return found
        return _Recorded(hub, name, found)

    return start


def _with_data(given: Any) -> Any:
    """Of records of references, the records that these lead to."""
    if isinstance(given, Rollouts | Fields | Experience):
        return replace(given, shards=tuple(ref.value() for ref in given.shards))
    return given

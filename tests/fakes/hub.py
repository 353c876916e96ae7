"""What the fake groups of one run share: the event log, the faults, the position, the wire."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from orchestrator.supervision.pending import Position
from workers.errors import DeadlineError, RehearsalError, RoleDiedError

T = TypeVar("T")


@dataclass(frozen=True)
class Event:
    """A call was started, or its result was awaited."""

    kind: str  # "start" | "result"
    name: str  # "role.verb"
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Faults:
    """What shall go wrong; nothing by default."""

    failed_rewards: Callable[[int], str] = lambda _: ""  # sequence id -> reason, "" = well
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
        self.updates: list[dict[str, Any]] = []  # what each trainer update was asked to do

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


class FakeAnswer(Generic[T]):
    """The result of a call that was computed at its start, as an idle actor would."""

    def __init__(
        self, hub: Hub, name: str, value: T | None, error: RehearsalError | None = None
    ) -> None:
        self._hub, self._name, self._value, self._error = hub, name, value, error

    def result(self) -> T:
        """The value, or the error, and an entry in the log."""
        self._hub.events.append(Event("result", self._name))
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]


class FakeGroup:
    """Starts calls on ranks and turns what they raise into what `Pending` raises."""

    role = ""
    packed = False

    def __init__(self, hub: Hub, size: int) -> None:
        self.hub = hub
        self.size = size

    def _all(
        self,
        verb: str,
        call: Callable[[int], Any],
        combine: Callable[[list[Any]], Any] = lambda parts: parts,
        ranks: Sequence[int] | None = None,
        **facts: Any,
    ) -> FakeAnswer[Any]:
        name = f"{self.role}.{verb}"
        self.hub.events.append(Event("start", name, facts))
        self.hub.calls[name] += 1
        doing = f"{self.role}: {verb} ({self.hub.position})"
        parts: list[Any] = []
        for rank in range(self.size) if ranks is None else ranks:
            try:
                self._fail(name, f"{self.role} rank {rank}", doing)
                parts.append(call(rank))
            except (RoleDiedError, DeadlineError) as error:
                return FakeAnswer(self.hub, name, None, error)
            except RehearsalError as error:
                at = f"{self.role} rank {rank}, {doing}"
                error.where = f"{error.where}; {at}" if error.where else at
                return FakeAnswer(self.hub, name, None, error)
        return FakeAnswer(self.hub, name, combine(parts))

    def _fail(self, name: str, who: str, doing: str) -> None:
        faults = self.hub.faults
        if self.hub.calls[name] in faults.deaths.get(name, ()):
            faults.gone.add(self.role)
        if name in faults.dead or self.role in faults.gone:
            raise RoleDiedError(f"the process of {who} ended: {doing}", where=who)
        if name in faults.late:
            raise DeadlineError(f"no answer within 1 s: {doing}", where=who)
        if name in faults.raising:
            raise faults.raising[name]


def first(parts: list[T]) -> T:
    return parts[0]


def nothing(parts: list[Any]) -> None:
    del parts

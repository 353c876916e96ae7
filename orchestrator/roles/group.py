"""Base classes of all groups of workers.

A verb of a group names the method of the worker, its arguments, and how the answers of the ranks
combine; the back end runs it. It starts a call on every worker and returns a `Pending`, so that
independent calls run at the same time and every wait has a deadline. Token data travels from worker
to worker as references: the driver holds them in `Rollouts`, `Fields` and `Experience` and sees
per-sequence scalars only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from orchestrator.cluster.worker_processes import end_here
from orchestrator.roles.interfaces import Fields, Rollouts
from orchestrator.supervision.backend import Backend, Call, Ref, WorkerClass, data_alone
from orchestrator.supervision.heartbeats import Watch
from orchestrator.supervision.pending import Pending, Position, PulseLine, everything, glance
from orchestrator.telemetry.role_time import Account
from workers.errors import RehearsalError, RoleDiedError, RoleError, RoleHungError
from workers.process.call_timing import Reply
from workers.records.processes import RoleInfo
from workers.records.training import TokenField, Work


class Room(Protocol):
    """Places for workers beyond the reservation of the run, which the cluster may have or not."""

    def there(self, rank: int) -> bool:
        """Whether the worker has a place now; asks for one if it has none. Does not block."""
        ...

    def give_back(self, rank: int) -> None:
        """Release the place of a worker, if it has one."""
        ...


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start the workers of one group."""

    backend: Backend
    options: Callable[[int], dict[str, Any]]  # rank -> resources, placement, env of its process
    workers: int
    start_seconds: float
    call_seconds: float
    position: Position
    account: Account = field(default_factory=Account)
    watch: Watch | None = None
    announce: Callable[[], None] = lambda: None  # called when the group's processes are known
    # (worker, error of its loss, how many of its replies are discarded)
    lost: Callable[[str, RehearsalError, int], None] = lambda *_: None
    # (worker, error), when the group continues without that worker
    given_up: Callable[[str, RehearsalError], None] = lambda *_: None
    most: int = 0  # workers at most: those above `workers` start when there is room for them
    room: Room | None = None  # of those above `workers`


@dataclass(frozen=True, slots=True)
class Each:
    """An argument of a call that differs by rank: `of[rank]`."""

    of: Sequence[Any] | Mapping[int, Any]


class Group:
    """The workers of one role."""

    role: str
    worker: WorkerClass
    line: type[PulseLine] = PulseLine
    replicas = False  # workers are independent, and each can be restarted alone

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self.workers: list[Any] = []
        self.infos: list[RoleInfo] = []
        self.packed = False  # whether the loaded model takes packed sequences, without padding
        self._spawn()

    def _spawn(self) -> None:
        self.workers = [self._make(rank) for rank in range(self._launch.workers)]

    def _make(self, rank: int) -> Any:
        """Start a process for one rank in its planned placement."""
        if self._launch.watch is not None:
            self._launch.watch.rest(self.name(rank))
        backend, name = self._launch.backend, self.name(rank)
        worker = backend.create(self.worker, rank, self._launch.options(rank))
        self._launch.account.came(self.role, rank)
        if self._launch.watch is not None:
            self._launch.watch.add(name, self.line(backend, worker, name))
        return worker

    def name(self, rank: int) -> str:
        """The name of a worker in messages, logs and records."""
        return f"{self.role} rank {rank}"

    @property
    def size(self) -> int:
        """Number of workers in the group."""
        return self._launch.workers

    @property
    def ranks(self) -> list[int]:
        """Workers that calls go to."""
        return list(range(self.size))

    def _all(
        self,
        call: str | Call,
        combine: Callable[[list[Any]], Any],
        *args: Any,
        ranks: Sequence[int] | None = None,
        starting: bool = False,
        again: bool = False,
    ) -> Pending[Any]:
        """Call the workers of the chosen ranks.

        Args:
            call: The method of the worker.
            combine: Builds the group's answer from those of the ranks; of split answers, from the
                pairs (reference to the large record, small record).
            args: Its arguments; `Each` is by rank.
            ranks: The chosen ranks; None: all.
            starting: The call imports or loads.
            again: If a worker is lost meanwhile, restart it and repeat its call, or leave it out.
        """
        call = Call(call) if isinstance(call, str) else call
        chosen = list(self.ranks if ranks is None else ranks)
        left_out: set[int] = set()
        seconds = self._launch.start_seconds if starting else self._launch.call_seconds
        backend, account, calls = self._launch.backend, self._launch.account, dict[int, int]()
        large: dict[int, Ref] = {}

        def start(rank: int) -> Ref:
            sent = account.now()
            own = [each.of[rank] if isinstance(each, Each) else each for each in args]
            ref = backend.start(self.workers[rank], call, *own)
            if call.split is not None:
                large[rank], ref = ref
            calls[rank] = account.sent(self.role, rank, sent, partial(glance, backend, ref))
            return ref

        def once_more(number: int, error: RoleError) -> Any:
            if self._recover(chosen[number], error):
                return start(chosen[number])
            left_out.add(chosen[number])
            return None

        refs = [start(rank) for rank in chosen]

        def take(replies: list[Reply]) -> Any:
            answering = [rank for rank in chosen if rank not in left_out]
            for rank, reply in zip(answering, replies, strict=True):
                account.answered(self.role, rank, calls[rank], reply.spans)
            small = [reply.value for reply in replies]
            if call.split is None:
                return combine(small)
            return combine([(large[rank], s) for rank, s in zip(answering, small, strict=True)])

        return Pending(
            backend,
            refs,
            [self.name(rank) for rank in chosen],
            f"{self.role}: {call.verb.replace('_', ' ')}",
            seconds,
            self._launch.position,
            take,
            self._launch.watch,
            starting=starting,
            again=once_more if again and self._launch.watch is not None else None,
        )

    @property
    def _watch(self) -> Watch:
        assert self._launch.watch is not None, "lost workers are noticed by the watch"
        return self._launch.watch

    def _recover(self, rank: int, error: RoleError) -> bool:
        """Handle the loss of a worker; returns whether it can be called again now."""
        self._revive(rank, error)
        return True

    def _revive(self, rank: int, error: RehearsalError) -> None:
        """End what is left of a worker, restart it, and reload what it held.

        Raises:
            RoleDiedError: it has used up its restarts.
        """
        while True:
            self._replace(rank, error)
            try:
                self._reload(rank)
            except (RoleDiedError, RoleHungError) as another:
                if another.where != self.name(rank):  # from another role that took part
                    raise
                error = another
            else:
                return

    def _replace(self, rank: int, error: RehearsalError) -> None:
        self._watch.require_restart(self.name(rank), error.what)
        self._launch.lost(self.name(rank), error, 0)
        self._end([rank])
        self.workers[rank] = self._make(rank)

    def _reload(self, rank: int) -> None:
        """Load into a restarted worker what its peers hold."""
        raise NotImplementedError

    def _fields(
        self, verb: str, works: Sequence[Work], rollouts: Rollouts, *args: Any
    ) -> Pending[Fields]:
        held = tuple(work.ids for work in works)
        return self._all(
            Call(verb, data_alone),
            lambda found: Fields(tuple(ref for ref, _ in found), held),
            Each(works),
            Each([rollouts.holding(ids) for ids in held]),
            *args,
            again=self.replicas,
        )

    def _bring(self, shards: Sequence[Ref], combine: Callable[[list[Any]], Any]) -> Pending[Any]:
        """Fetch records of workers to the driver."""
        names = [f"shard {n} of {len(shards)}, fetched by {self.role}" for n in range(len(shards))]
        seconds = self._launch.call_seconds
        return Pending(
            self._launch.backend,
            list(shards),
            names,
            f"{self.role}: fetch",
            seconds,
            self._launch.position,
            combine,
            self._launch.watch,
        )

    def _remember(self, infos: list[RoleInfo]) -> list[RoleInfo]:
        self.infos = infos
        self._launch.announce()
        return infos

    def _remember_one(self, info: RoleInfo) -> None:
        others = [each for each in self.infos if each.rank != info.rank]
        self._remember(sorted([*others, info], key=lambda each: each.rank))

    def kill(self) -> None:
        """End every process of the group."""
        self._end(range(len(self.workers)))
        self.workers = []

    def _end(self, ranks: Sequence[int]) -> None:
        for rank in ranks:
            if self.workers[rank] is not None:
                self._launch.backend.end(self.workers[rank])
                self._launch.account.left(self.role, rank)
        end_here([info for info in self.infos if info.rank in ranks], self.worker.name)


class LanguageModelGroup(Group):
    """Workers that hold a causal language model."""

    def logprobs(
        self, works: Sequence[Work], rollouts: Rollouts, temperature: float
    ) -> Pending[Fields]:
        """Log-probabilities of the response tokens under the current weights, nats."""
        return self._fields("logprobs", works, rollouts, temperature)

    def fetch(self, fields: Fields) -> Pending[list[TokenField]]:
        """Bring token fields to the driver: for the parity probe, a few tokens per sync."""
        return self._bring(fields.shards, everything)

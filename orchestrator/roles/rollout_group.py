"""Rollout engines as one group: generation in parts, weight loading, and lost engines."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.roles.dispatch import NOT_SENT, Dispatch, Hand
from orchestrator.roles.generation import Generating
from orchestrator.roles.group import Each, Group, Launch
from orchestrator.roles.interfaces import WHOLE, Generation, Rollouts, joined
from orchestrator.roles.returning_engines import ReturningEngines
from orchestrator.supervision.backend import Call, WorkerClass, with_summary
from orchestrator.supervision.pending import (
    Arrivals,
    EngineLine,
    Pending,
    everything,
    nothing,
)
from orchestrator.supervision.worker_life import Status
from workers.errors import RehearsalError, RoleDiedError, RoleError, RoleHungError
from workers.records.generation import (
    Delivery,
    EngineState,
    GenerationCall,
    GenerationRequest,
    RolloutBatch,
    Sampling,
)
from workers.records.processes import RoleInfo
from workers.records.specs import RolloutSpec
from workers.records.weights import GroupAddress, WeightOffer, WeightReceipt


@dataclass(frozen=True, slots=True)
class _Served:
    """Which weights the engines serve."""

    path: str  # the checkpoint; "" = weights sent by a weight sync
    version: int


class RolloutGroup(Group):
    """n independent generation engines."""

    role, line = "rollout", EngineLine
    worker = WorkerClass("workers.roles.rollout", "RolloutWorker")

    def __init__(self, launch: Launch) -> None:
        self._returning = ReturningEngines(self)
        super().__init__(launch)
        self._calls = itertools.count()
        launch.account.ask.append(self._tell)
        if launch.watch is not None:
            launch.watch.meanwhile.append(self._meanwhile)
        self._open: list[Generating] = []  # in the order in which they were requested
        self._spec: RolloutSpec | None = None
        self._served = _Served("", -1)
        self._paused = False
        self._changing = False  # engines are between two versions
        self._waits = False  # the driver waits for an engine to restart
        self._final: RoleDiedError | None = None  # why the engine given up last was given up
        self._bringing = False  # a restarted engine is receiving weights
        # (rank, version): brings a restarted engine to the version that its peers serve; None
        # while no trainer holds these weights.
        self.refresh: Callable[[int, int], None] | None = None

    def _spawn(self) -> None:
        watch, most = self._launch.watch, max(self.size, self._launch.most)
        self.workers = [None] * most
        for rank in range(most):
            retired = watch is not None and not watch.comes_back(self.name(rank))
            if retired or self._extra(rank):
                self._returning.add(rank, given_up=retired, extra=self._extra(rank))
            else:
                self.workers[rank] = self._make(rank)

    def _extra(self, rank: int) -> bool:
        """Whether the engine is one that the run does without while the cluster has no room."""
        return rank >= self.size

    @property
    def ranks(self) -> list[int]:
        """Engines that calls go to: all except absent ones."""
        return [rank for rank in range(len(self.workers)) if rank not in self._returning]

    def prepare(self, engine: str) -> Pending[None]:
        """Import the engine while other roles start; the result need not be awaited."""
        return self._all("prepare", nothing, engine)

    def start(self, spec: RolloutSpec, version: int) -> Pending[list[RoleInfo]]:
        """Build the engines with a checkpoint's weights, admitted as `version`."""
        self._spec, self._served = spec, _Served(spec.checkpoint, version)
        return self._all("start", self._remember, spec, version, starting=True, again=True)

    def replace_lost(self) -> list[str]:
        """Leave out engines that died or hang; returns their names.

        Leaves out none if one has unfinished sequences and generation is not paused: these began
        under weights that nobody holds any more. Without a watch, nobody knows whether one is lost.
        """
        if self._launch.watch is None:
            return []
        lost = self._watch.lost([self.name(rank) for rank in self.ranks])
        gone = [rank for rank in self.ranks if self.name(rank) in lost]
        if not self._paused and any(rank in each.owed for each in self._open for rank in gone):
            return []
        for rank in gone:
            self._leave_out(rank, RoleDiedError(self._watch.life(self.name(rank)).reason))
        self.join()
        for each in self._open:
            for rank in gone:
                each.deal_again(rank, self.ranks)
        return lost

    def join(self) -> None:
        """Take back engines that have restarted; call before all get the same weights.

        If no engine is left, wait until one has restarted.
        """
        if self.sampling:
            self._tell()  # finds lost engines while their peers still hold the present weights
        self._returning.look()
        sleeps = self._spec is not None and self._spec.sleep  # can start only while trainers rest
        self._wait_until(lambda: not (sleeps and self._returning.coming))
        self._wait_until(lambda: bool(self.ranks or self._returning.standing))
        for rank in self._returning.standing:
            self._returning.take(rank)

    def _wait_until(self, there: Callable[[], bool]) -> None:
        self._waits = True
        try:
            while not there():
                if self._final is not None and self._returning.hopeless and not self.ranks:
                    raise self._final
                self._watch.tick()
                time.sleep(self._watch.poll_seconds)
        finally:
            self._waits = False

    def _recover(self, rank: int, error: RoleError) -> bool:
        """Continue without a lost engine; wait for a restart only if it was the last one.

        Raises:
            RoleError: `error`, if it was the last one and nobody else holds the weights that it
                served, or a typed error if it has used up its restarts.
        """
        if rank in self._returning:
            return False
        if self.ranks == [rank] and not (self._served.path or self.refresh):
            raise error
        self._leave_out(rank, error)
        while not self.ranks:
            self._wait_until(lambda: bool(self._returning.standing))
            for each in self._returning.standing:
                self._bring_in(each)
        for generating in self._open:
            generating.deal_again(rank, self.ranks)
            if not self._paused:
                generating.send(self._served.version)
        return rank in self.ranks

    def _leave_out(self, rank: int, error: RehearsalError) -> None:
        thrown = sum([each.forget(rank) for each in self._open])
        self._returning.add(rank, extra=self._extra(rank))
        self.failed(rank, error, thrown)
        self._returning.look()

    def _bring_in(self, rank: int) -> None:
        """Load into a restarted engine the weights that its peers serve."""
        path, version = self._served.path, self._served.version
        self._bringing = True
        try:
            if path:
                self._all("load_checkpoint", nothing, path, version, ranks=[rank]).result()
            else:
                assert self.refresh is not None, "looked at before"
                self.refresh(rank, version)
        except (RoleDiedError, RoleHungError) as error:
            if error.where != self.name(rank):  # from another role that took part
                raise
            self._returning.lost(rank, error)
        else:
            self._returning.take(rank)
        finally:
            self._bringing = False

    def _meanwhile(self, waited: Collection[str]) -> None:
        """Advance engine restarts and detect lost engines, during any wait of the driver.

        The wait itself handles the loss of an engine in `waited`.
        """
        if self._bringing:
            return
        self._returning.look()
        for rank in self.ranks:
            name = self.name(rank)
            life = self._watch.life(name)
            away = life.status is Status.dead and name not in waited
            if away and not self._changing and self.ranks != [rank]:
                self._recover(rank, RoleDiedError(life.reason, where=name))

    def may_begin(self, rank: int) -> bool:
        """Whether an engine's restart delay is over, and memory for its start is free."""
        spec, name = self._spec, self.name(rank)
        if spec is None or (spec.sleep and not self._waits):
            return False
        if self._watch.knows(name) and self._watch.life(name).rests:
            return False
        room = self._launch.room
        return room is None or not self._extra(rank) or room.there(rank)

    def begin(self, rank: int) -> Pending[None]:
        """Start an absent engine.

        Raises:
            RoleDiedError: it has used up its restarts.
        """
        if self._watch.knows(self.name(rank)):
            self._watch.require_restart(self.name(rank), "")
        self.workers[rank] = self._make(rank)
        remember = lambda infos: self._remember_one(infos[0])  # noqa: E731
        return self._all("start", remember, self._spec, 0, ranks=[rank], starting=True)

    def stands(self, rank: int) -> bool:
        """Whether a restarted engine is alive."""
        return self._watch.life(self.name(rank)).serves

    def failed(self, rank: int, error: RehearsalError, thrown: int = 0) -> None:
        """Record the loss of an engine, and end what is left of it."""
        self._watch.died(self.name(rank), error.what)
        self._end([rank])
        self._give_back(rank)  # its node may be gone; the next place may be on another one
        self._remember([info for info in self.infos if info.rank != rank])
        self._launch.lost(self.name(rank), error, thrown)

    def give_up(self, rank: int, error: RoleDiedError) -> None:
        """Continue with the other engines for good.

        Raises:
            RoleDiedError: `error`, if no others are left, or the configuration allows no restart.
        """
        self._final = error
        needed = not self._extra(rank) and not self._watch.rules.max_restarts
        if needed or (self._returning.hopeless and not self.ranks):
            raise error
        self._give_back(rank)
        self._launch.given_up(self.name(rank), error)

    def _give_back(self, rank: int) -> None:
        if self._launch.room is not None and self._extra(rank):
            self._launch.room.give_back(rank)

    def restart(self, spec: RolloutSpec, version: int) -> Pending[list[RoleInfo]]:
        """Replace the engines by fresh processes (another architecture)."""
        self.kill()
        self._spawn()
        return self.start(spec, version)

    def kill(self) -> None:
        """End every engine, and drop all open generations and restarts."""
        most = len(self.workers)
        super().kill()
        for rank in range(self.size, most):
            self._give_back(rank)
        self._open, self._returning = [], ReturningEngines(self)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        version: int,
        delivery: Delivery = WHOLE,
    ) -> Generation:
        """Sample requests, assigned deterministically so that engines have similar token counts.

        Its answer raises StaleEngineError unless all engines are admitted for exactly `version`.
        """
        self._paused = False
        for rank in self._returning.standing:
            if self._served.path or self.refresh:
                self._bring_in(rank)
        # Assigned as if no engine had been lost: then the order of the sequences, and so every sum
        # over them, does not depend on which engines are absent. Extra engines count while they
        # are there: dealt again, the shares of those that are not would be sampled one by one.
        engines = sorted({*range(self.size), *self.ranks})
        dispatch = Dispatch(requests, engines, sampling.max_tokens, delivery.groups)
        for rank in set(engines) - set(self.ranks):
            dispatch.deal_again(rank, self.ranks)
        backend = self._launch.backend
        arrivals = Arrivals(
            backend,
            f"{self.role}: generate",
            self._launch.call_seconds,
            self._launch.position,
            self._launch.watch,
        )

        def send(hand: Hand, version: int) -> None:
            hand.call = next(self._calls)
            wanted, requests = replace(delivery, groups=hand.wanted), dispatch.requests(hand)
            call: Any = GenerationCall(hand.call, requests, sampling, version, wanted)
            worker = self.workers[hand.rank]
            if self._spec is not None and self._spec.join_running and self._owes(hand.rank):
                call = backend.put(call)
                # The call below repeats any error of this one.
                backend.tell(worker, Call("announce"), call)
            stream = backend.stream(worker, Call("generate_parts", with_summary), call)
            arrivals.add(stream, hand.rank, self.name(hand.rank))

        generating = Generating(
            dispatch,
            arrivals,
            self._launch.account,
            together=not delivery.part_sequences,
            send=send,
            lost=self._deal_again if self._launch.watch is not None else None,
        )
        generating.send(version)
        self._open = [*(each for each in self._open if each.owed), generating]
        return generating

    def _owes(self, rank: int) -> bool:
        return any(rank in generating.owed for generating in self._open)

    def _deal_again(self, name: str, error: RoleError) -> None:
        ranks = range(len(self.workers))
        self._recover(next(n for n in ranks if self.name(n) == name), error)

    def lost(self, error: RoleError) -> bool:
        """Continue without the engine that an error names; False if it is none of these.

        Raises:
            RoleError: as `_recover`.
        """
        if error.where not in [self.name(rank) for rank in range(len(self.workers))]:
            return False
        self._deal_again(error.where, error)
        return True

    def refuse(self) -> None:
        """Have the engines serve nothing until they get other weights.

        What they sample at present they sample to its end, and nobody may take it.
        """
        self._open = []
        for rank in self.ranks:
            self._launch.backend.tell(self.workers[rank], Call("refuse"))

    @property
    def sampling(self) -> bool:
        """Whether any engine has unfinished sequences."""
        return any(self._owes(rank) for rank in self.ranks)

    @property
    def unfinished(self) -> int:
        """Sequences that were asked for and that engines have not finished."""
        return sum(generating.unfinished for generating in self._open)

    def sleep(self) -> Pending[None]:
        """Free the engines' GPU memory for other roles, if the spec says so and none samples.

        They take it back by themselves for the next call that needs it.
        """
        sleeps = self._spec is not None and self._spec.sleep and not self.sampling
        return self._all(
            "sleep",
            nothing,
            ranks=None if sleeps else (),
            again=bool(self._served.path or self.refresh),
        )

    def pause(self) -> Pending[None]:
        """Interrupt all generations, between two engine steps, until `resume`."""
        self._paused = True
        return self._all(Call("pause", beside=True), nothing, again=True)

    def abandon(self) -> None:
        """Interrupt and drop all generations; the engines keep running.

        Raises:
            RehearsalError: an engine died, or does not finish a step.
        """
        self.pause().result()
        self._open, self._paused = [], False
        self._all("forget", nothing).result()

    def _tell(self) -> None:
        """Update the time account with what engines did so far in running generations."""
        ranks = [rank for rank in self.ranks if self._owes(rank)]
        if ranks:
            # Any reply carries the times of running calls.
            state = Call("state", beside=True)
            self._all(state, nothing, ranks=ranks, again=True).result()

    def resume(self, version: int) -> None:
        """Resume interrupted generations under `version`, which the engines have admitted."""
        self._paused = False
        for generating in self._open:
            for hand in generating.hands:
                if hand.call != NOT_SENT:
                    stream = self._launch.backend.stream(
                        self.workers[hand.rank], Call("proceed", with_summary), hand.call, version
                    )
                    generating.arrivals.add(stream, hand.rank, self.name(hand.rank))
            generating.send(version)

    def hold(self, batch: RolloutBatch) -> Rollouts:
        """Store sequences of an earlier process as if engines had just sampled them."""
        return Rollouts.of(self._launch.backend.put(batch), batch.summary())

    def fetch(self, rollouts: Rollouts) -> Pending[RolloutBatch]:
        """Bring whole sequences to the driver: for texts, labels and supervised steps."""
        return self._bring(rollouts.shards, RolloutBatch.concat)

    def load_checkpoint(self, path: str, version: int) -> Pending[list[WeightReceipt]]:
        """Load a Hugging Face folder of the same architecture, admitted as `version`."""
        self._served, self._changing = _Served(path, version), False
        self.join()
        return self._all("load_checkpoint", everything, path, version, again=True)

    def connect(self, address: GroupAddress) -> Pending[None]:
        """Join the transfer group: the sender is rank 0, each engine's workers follow in order."""
        ranks = self.ranks
        width = (address.world_size - 1) // len(ranks)  # tensor-parallel workers of one engine
        first = Each({rank: 1 + n * width for n, rank in enumerate(ranks)})
        return self._all("connect", nothing, address, first)

    def receive_weights(
        self, offer: WeightOffer, ranks: Sequence[int] | None = None
    ) -> Pending[list[WeightReceipt]]:
        """Load offered weights; the engines stay unverified until admitted.

        Args:
            offer: The weights.
            ranks: Restarted engines that get what their peers serve; None: all engines.
        """
        self._changing = self._changing or ranks is None
        return self._all("receive_weights", everything, offer, ranks=ranks)

    def probe(
        self,
        prompts: list[tuple[int, ...]],
        max_tokens: int,
        temperature: float,
        version: int,
        ranks: Sequence[int] | None = None,
    ) -> Pending[Rollouts]:
        """Sample a few tokens on every engine, one shard each; works with unverified weights."""
        return self._all(
            Call("probe", with_summary),
            lambda found: joined([Rollouts.of(ref, summary) for ref, summary in found]),
            prompts,
            max_tokens,
            temperature,
            version,
            ranks=ranks,
        )

    def states(self) -> Pending[list[EngineState]]:
        """The weight version and status of each engine."""
        return self._all("state", everything)

    def admit(self, version: int, ranks: Sequence[int] | None = None) -> Pending[None]:
        """Let the engines serve `version`."""
        if ranks is None:
            self._served, self._changing = _Served("", version), False
        return self._all("admit", nothing, version, ranks=ranks)

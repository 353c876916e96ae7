"""Typed handles of the role groups. The only file that makes actors.

A handle has few verbs; each starts the call on every worker of its group and returns a `Pending`,
so that independent calls run at the same time and every wait has a deadline. Token data travels
from worker to worker as references: the driver holds them in `Rollouts`, `Fields` and `Experience`
and sees per-sequence scalars only.
"""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import ray
from ray.exceptions import GetTimeoutError

from orchestrator.absence import Absence
from orchestrator.account import Account
from orchestrator.dispatch import NOT_SENT, Dispatch, Hand
from orchestrator.generating import Generating
from orchestrator.handles import WHOLE, Experience, Fields, Generation, Ref, Rollouts, joined
from orchestrator.processes import end_here
from orchestrator.supervision import Status
from orchestrator.waiting import (
    Arrivals,
    EngineLine,
    Pending,
    Position,
    PulseLine,
    everything,
    first,
    glance,
    nothing,
)
from orchestrator.watch import Watch
from workers.critic import CriticWorker
from workers.data.asked import Asked
from workers.errors import (
    DeadlineError,
    RehearsalError,
    RoleDiedError,
    RoleError,
    RoleHungError,
)
from workers.experience import gather_scores
from workers.messages import (
    Delivery,
    EngineState,
    ExperienceBatch,
    ExperienceSummary,
    FileRecord,
    FloatArray,
    GenerationCall,
    GenerationRequest,
    GroupAddress,
    PairCounts,
    PolicyStep,
    RankAddress,
    RankingStep,
    RoleInfo,
    RolloutBatch,
    RolloutSummary,
    Sampling,
    Scores,
    StepStats,
    StepWork,
    SupervisedStep,
    TextLoss,
    TokenBatch,
    TokenField,
    WeightOffer,
    WeightReceipt,
    Work,
)
from workers.policy import PolicyWorker
from workers.pulse import Pulse, pulse, stacks, traced
from workers.reference import ReferenceWorker
from workers.reward import RewardWorker
from workers.rollout import RolloutWorker
from workers.specs import (
    FrozenModelSpec,
    GroupSpec,
    PolicyLossSpec,
    RewardSpec,
    RolloutSpec,
    ShapingSpec,
    TrainModelSpec,
)
from workers.timing import Reply, fetching, timed_verbs

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Launch:
    """How the actors of one group are made."""

    options: Callable[[int], dict[str, Any]]  # rank -> Ray options (resources, placement, env)
    workers: int
    start_seconds: float
    call_seconds: float
    position: Position
    account: Account = field(default_factory=Account)
    watch: Watch | None = None
    announce: Callable[[], None] = lambda: None  # the processes of the group are known
    # a worker, how it showed, and how many of its replies are thrown away
    lost: Callable[[str, RehearsalError, int], None] = lambda *_: None
    given_up: Callable[[str, RehearsalError], None] = lambda *_: None  # the group goes on without


def _fetch(refs: Sequence[Ref]) -> list[Any]:
    """Inside an actor: the records behind references, shared memory where they are local."""
    try:
        with fetching():
            return ray.get(list(refs), timeout=_FETCH_SECONDS)
    except GetTimeoutError as error:
        raise DeadlineError(
            f"records of other roles did not arrive within {_FETCH_SECONDS:.0f} s",
            mend="check the network between the nodes and the object store's size",
        ) from error


_FETCH_SECONDS = 600.0


# Verbs of these groups run beside the others, which wait for each other.
_CONTROL, _HEALTH = "control", "health"
_BESIDE = ("interrupt", "pause", "tell", "announce", "announce_ahead")


def _vital(worker: type[T]) -> type[T]:
    """The verbs of a worker leave traces, and two more report them from a thread of their own."""
    for name, member in inspect.getmembers(worker, inspect.isfunction):
        if not name.startswith("_") and name not in _BESIDE:
            setattr(worker, name, traced(name, member))
    health = ray.method(concurrency_group=_HEALTH)
    setattr(worker, "pulse", health(_pulse))  # noqa: B010
    setattr(worker, "stacks", health(_stacks))  # noqa: B010
    return worker


def _pulse(_: Any) -> Pulse:
    return pulse()


def _stacks(_: Any) -> str:
    return stacks()


# Answers bring along when their call ran, which the driver's account of time takes off them.
_timed = timed_verbs(lambda verb: getattr(verb, "__ray_num_returns__", 1))

# Verbs that make token data return two objects: the data, which stays where it is until a worker
# asks for it, and something small, which is all that the driver fetches.


@_vital
@_timed
class _RolloutActor(RolloutWorker):
    @ray.method(num_returns="streaming")
    def generate_shards(self, call: GenerationCall) -> Iterator[RolloutBatch | RolloutSummary]:
        for batch in self.generate_parts(call):
            yield batch
            yield batch.summary()

    @ray.method(num_returns="streaming")
    def proceed_shards(self, call: int, version: int) -> Iterator[RolloutBatch | RolloutSummary]:
        for batch in self.proceed(call, version):
            yield batch
            yield batch.summary()

    @ray.method(concurrency_group=_CONTROL)
    def interrupt(self) -> None:
        self.pause()

    @ray.method(concurrency_group=_CONTROL, num_returns=0)
    def announce_ahead(self, call: GenerationCall) -> None:
        # not self.announce, which would hand the account of the running call to nobody
        super().announce(call)

    @ray.method(concurrency_group=_CONTROL)
    def tell(self) -> None:
        """Answer with what a running generation has done so far."""

    @ray.method(num_returns=2)
    def probe_shard(
        self, prompts: list[tuple[int, ...]], max_tokens: int, temperature: float, version: int
    ) -> tuple[RolloutBatch, RolloutSummary]:
        batch = self.probe(prompts, max_tokens, temperature, version)
        ids = np.arange(len(batch), dtype=np.int64) + self.rank * len(batch)
        batch = replace(batch, ids=ids)  # unique over the engines
        return batch, batch.summary()


@_vital
@_timed
class _RewardActor(RewardWorker):
    def score_shards(
        self, ids: np.ndarray, shards: Sequence[Ref], asked: Sequence[Asked]
    ) -> Scores:
        return self.score(ids, _fetch(shards), asked)


@_vital
@_timed
class _ReferenceActor(ReferenceWorker):
    @ray.method(num_returns=2)
    def logprobs_of(
        self, work: Work, shards: Sequence[Ref], temperature: float
    ) -> tuple[TokenField, None]:
        return self.logprobs(work, _fetch(shards), temperature), None


@_vital
@_timed
class _PolicyActor(PolicyWorker):
    @ray.method(num_returns=2)
    def logprobs_of(
        self, work: Work, shards: Sequence[Ref], temperature: float
    ) -> tuple[TokenField, None]:
        return self.logprobs(work, _fetch(shards), temperature), None

    def update_on(
        self, steps: list[PolicyStep], shards: Sequence[Ref], loss: PolicyLossSpec
    ) -> list[StepStats]:
        return self.update(steps, _fetch(shards), loss)


@_vital
@_timed
class _CriticActor(CriticWorker):
    @ray.method(num_returns=2)
    def values_of(self, work: Work, shards: Sequence[Ref]) -> tuple[TokenField, None]:
        return self.values(work, _fetch(shards)), None

    @ray.method(num_returns=2)
    def build_experience_of(
        self,
        work: Work,
        rollouts: Sequence[Ref],
        old: Sequence[Ref],
        reference: Sequence[Ref],
        values: Sequence[Ref],
        scores: Scores,
        shaping: ShapingSpec,
    ) -> tuple[ExperienceBatch, ExperienceSummary]:
        return self.build_experience(
            work, _fetch(rollouts), _fetch(old), _fetch(reference), _fetch(values), scores, shaping
        )

    def update_on(
        self, steps: list[StepWork], shards: Sequence[Ref], value_clip: float
    ) -> list[StepStats]:
        return self.update(steps, _fetch(shards), value_clip)


class _Group:
    """The actors of one role."""

    role: str
    worker: type
    line: type[PulseLine] = PulseLine
    replicas = False  # each worker is whole by itself, and can be made anew alone
    concurrency: Mapping[str, int] = MappingProxyType({_HEALTH: 1})  # threads of groups of verbs

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self.actors: list[Any] = []
        self.infos: list[RoleInfo] = []
        self.packed = False  # whether the loaded model takes sequences end to end
        self._spawn()

    def _spawn(self) -> None:
        self.actors = [self._make(rank) for rank in range(self._launch.workers)]

    def _make(self, rank: int) -> Any:
        """A process for one rank, in the place that the plan gives it."""
        if self._launch.watch is not None:
            self._launch.watch.rest(self.name(rank))
        remote: Any = ray.remote
        make = remote(concurrency_groups=dict(self.concurrency))(self.worker)
        actor = make.options(**self._launch.options(rank)).remote(rank)
        self._launch.account.came(self.role, rank)
        if self._launch.watch is not None:
            name = self.name(rank)
            self._launch.watch.add(name, self.line(actor, name))
        return actor

    def name(self, rank: int) -> str:
        """What a worker is called everywhere."""
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
        doing: str,
        call: Callable[[Any, int], Any],
        combine: Callable[[list[Any]], Any],
        *,
        ranks: Sequence[int] | None = None,
        starting: bool = False,
        again: bool = False,
    ) -> Pending[Any]:
        """Start `call(actor, rank)` on the chosen ranks.

        Args:
            doing: What the call does.
            call: Starts it.
            combine: Makes the answer of the group from those of the ranks.
            ranks: The chosen ones; None: all.
            starting: It imports or loads.
            again: A worker that is lost meanwhile is made anew and called again, or left out.
        """
        chosen = list(self.ranks if ranks is None else ranks)
        left_out: set[int] = set()
        seconds = self._launch.start_seconds if starting else self._launch.call_seconds
        account, calls = self._launch.account, dict[int, int]()

        def start(rank: int) -> Any:
            sent = account.now()
            ref = call(self.actors[rank], rank)
            calls[rank] = account.sent(self.role, rank, sent, partial(glance, ref))
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
            return combine([reply.value for reply in replies])

        return Pending(
            refs,
            [self.name(rank) for rank in chosen],
            f"{self.role}: {doing}",
            seconds,
            self._launch.position,
            take,
            self._launch.watch,
            starting=starting,
            again=once_more if again and self._launch.watch is not None else None,
        )

    def _one(
        self, doing: str, rank: int, call: Callable[[Any], Any], *, starting: bool = False
    ) -> Any:
        """Call one worker and wait for its answer."""
        return self._all(
            doing, lambda actor, _: call(actor), first, ranks=[rank], starting=starting
        ).result()

    @property
    def _watch(self) -> Watch:
        assert self._launch.watch is not None, "lost workers are noticed by the watch"
        return self._launch.watch

    def _recover(self, rank: int, error: RoleError) -> bool:
        """Do something about a worker that was lost; whether it can be called again now."""
        self._revive(rank, error)
        return True

    def _revive(self, rank: int, error: RehearsalError) -> None:
        """End what is left of a worker and make it anew, with what it had been given.

        Raises:
            RoleDiedError: it has used up its restarts.
        """
        while True:
            self._replace(rank, error)
            try:
                self._reload(rank)
            except (RoleDiedError, RoleHungError) as another:
                if another.where != self.name(rank):  # of another role that had to help
                    raise
                error = another
            else:
                return

    def _replace(self, rank: int, error: RehearsalError) -> None:
        self._watch.require_restart(self.name(rank), error.what)
        self._launch.lost(self.name(rank), error, 0)
        self._end([rank])
        self.actors[rank] = self._make(rank)

    def _reload(self, rank: int) -> None:
        """Give a new worker what its peers hold."""
        raise NotImplementedError

    def _fields(self, doing: str, call: Callable[[Any, int], tuple[Ref, Ref]]) -> Pending[Fields]:
        shards: dict[int, Ref] = {}
        return self._all(
            doing, _keeping(shards, call), lambda _: Fields(_in_order(shards)), again=self.replicas
        )

    def _bring(self, shards: Sequence[Ref], combine: Callable[[list[Any]], Any]) -> Pending[Any]:
        """Fetch records that workers have made to the driver."""
        names = [f"shard {n} of {len(shards)}, fetched by {self.role}" for n in range(len(shards))]
        seconds = self._launch.call_seconds
        return Pending(
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
        self._end(range(len(self.actors)))
        self.actors = []

    def _end(self, ranks: Sequence[int]) -> None:
        for rank in ranks:
            if self.actors[rank] is not None:
                ray.kill(self.actors[rank], no_restart=True)
            self._launch.account.left(self.role, rank)
        end_here([info for info in self.infos if info.rank in ranks], self.worker.__name__)


@dataclass(frozen=True, slots=True)
class _Served:
    """What the engines are to serve."""

    path: str  # the checkpoint; "" = weights that were sent
    version: int


class RolloutGroup(_Group):
    """n independent generation engines."""

    role, worker, line = "rollout", _RolloutActor, EngineLine
    concurrency = MappingProxyType({_CONTROL: 1, _HEALTH: 1})

    def __init__(self, launch: Launch) -> None:
        self._absence = Absence(self)
        super().__init__(launch)
        self._calls = itertools.count()
        launch.account.ask.append(self._tell)
        if launch.watch is not None:
            launch.watch.meanwhile.append(self._meanwhile)
        self._open: list[Generating] = []  # in the order in which they were asked for
        self._spec: RolloutSpec | None = None
        self._served = _Served("", -1)
        self._paused = False
        self._changing = False  # engines are between two versions
        self._waits = False  # for an engine to come back
        self._bringing = False  # one that stands is being given weights
        self.refresh: Callable[[int, int], None] | None = None

    def _spawn(self) -> None:
        watch = self._launch.watch
        self.actors = [None] * self._launch.workers
        for rank in range(self._launch.workers):
            if watch is None or watch.comes_back(self.name(rank)):
                self.actors[rank] = self._make(rank)
            else:
                self._absence.add(rank, given_up=True)

    @property
    def ranks(self) -> list[int]:
        """Engines that calls go to: none that is away."""
        return [rank for rank in range(len(self.actors)) if rank not in self._absence]

    def prepare(self, engine: str) -> Pending[None]:
        """Import the engine while other roles start; nobody needs to wait for it."""
        return self._all("prepare", lambda actor, _: actor.prepare.remote(engine), nothing)

    def start(self, spec: RolloutSpec, version: int) -> Pending[list[RoleInfo]]:
        """Build the engines on a checkpoint's weights, admitted as `version`."""
        self._spec, self._served = spec, _Served(spec.checkpoint, version)
        return self._all(
            "start",
            lambda actor, _: actor.start.remote(spec, version),
            self._remember,
            starting=True,
            again=True,
        )

    def replace_lost(self) -> list[str]:
        """Leave out engines that died or hang; names them.

        None where one owes sequences that began under weights that are gone.
        """
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
        """Take back engines that stand again; all are about to be given the same weights.

        Where no other engine is left, waits until one stands.
        """
        if self.sampling:
            self._tell()  # what a lost one owes can be dealt again as long as its peers hold this
        self._absence.look()
        sleeps = self._spec is not None and self._spec.sleep  # starts only while trainers rest
        self._wait_until(lambda: not (sleeps and self._absence.coming))
        self._wait_until(lambda: bool(self.ranks or self._absence.standing))
        for rank in self._absence.standing:
            self._absence.take(rank)

    def _wait_until(self, there: Callable[[], bool]) -> None:
        self._waits = True
        try:
            while not there():
                self._watch.tick()
                time.sleep(self._watch.poll_seconds)
        finally:
            self._waits = False

    def _recover(self, rank: int, error: RoleError) -> bool:
        """Go on without an engine; wait for one only if there is no other.

        Raises:
            RoleError: `error`, if there is no other and nobody holds the weights that it served, or
                a typed error that says that it has used up its restarts.
        """
        if rank in self._absence:
            return False
        if self.ranks == [rank] and not (self._served.path or self.refresh):
            raise error
        self._leave_out(rank, error)
        while not self.ranks:
            self._wait_until(lambda: bool(self._absence.standing))
            for each in self._absence.standing:
                self._bring_in(each)
        for generating in self._open:
            generating.deal_again(rank, self.ranks)
            if not self._paused:
                generating.send(self._served.version)
        return rank in self.ranks

    def _leave_out(self, rank: int, error: RehearsalError) -> None:
        thrown = sum([each.forget(rank) for each in self._open])
        self._absence.add(rank)
        self.failed(rank, error, thrown)
        self._absence.look()

    def _bring_in(self, rank: int) -> None:
        """Give an engine that stands what its peers serve."""
        path, version = self._served.path, self._served.version
        self._bringing = True
        try:
            if path:
                self._one("load", rank, lambda a: a.load_checkpoint.remote(path, version))
            else:
                assert self.refresh is not None, "looked at before"
                self.refresh(rank, version)
        except (RoleDiedError, RoleHungError) as error:
            if error.where != self.name(rank):  # of another role that had to help
                raise
            self._absence.lost(rank, error)
        else:
            self._absence.take(rank)
        finally:
            self._bringing = False

    def _meanwhile(self, waited: Collection[str]) -> None:
        """While the driver waits for whatever it is: engines come back, and lost ones are noticed.

        Engines that are waited for are looked after by who waits.
        """
        if self._bringing:
            return
        self._absence.look()
        for rank in self.ranks:
            name = self.name(rank)
            life = self._watch.life(name)
            away = life.status is Status.dead and name not in waited
            if away and not self._changing and self.ranks != [rank]:
                self._recover(rank, RoleDiedError(life.reason, where=name))

    def may_begin(self, rank: int) -> bool:
        """Whether an engine has rested long enough, and has the memory that it starts in."""
        spec = self._spec
        roomy = spec is not None and (not spec.sleep or self._waits)
        return roomy and not self._watch.life(self.name(rank)).rests

    def begin(self, rank: int) -> Pending[None]:
        """Start an engine that is away.

        Raises:
            RoleDiedError: it has used up its restarts.
        """
        self._watch.require_restart(self.name(rank), "")
        self.actors[rank] = self._make(rank)
        return self._all(
            "start",
            lambda actor, _: actor.start.remote(self._spec, 0),
            lambda infos: self._remember_one(infos[0]),
            ranks=[rank],
            starting=True,
        )

    def stands(self, rank: int) -> bool:
        """Whether an engine that was started lives."""
        return self._watch.life(self.name(rank)).serves

    def failed(self, rank: int, error: RehearsalError, thrown: int = 0) -> None:
        """An engine was lost: end what is left of it."""
        self._watch.died(self.name(rank), error.what)
        self._end([rank])
        self._remember([info for info in self.infos if info.rank != rank])
        self._launch.lost(self.name(rank), error, thrown)

    def give_up(self, rank: int, error: RoleDiedError) -> None:
        """Go on with the other engines for good.

        Raises:
            RoleDiedError: `error`, if there are none, or the configuration allows no loss.
        """
        if not self._watch.rules.max_restarts or (self._absence.hopeless and not self.ranks):
            raise error
        self._launch.given_up(self.name(rank), error)

    def restart(self, spec: RolloutSpec, version: int) -> Pending[list[RoleInfo]]:
        """Replace the engines by fresh processes (another architecture)."""
        self.kill()
        self._spawn()
        return self.start(spec, version)

    def kill(self) -> None:
        """End every engine; nobody owes anything any more, or has more to tell."""
        super().kill()
        self._open, self._absence = [], Absence(self)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        version: int,
        delivery: Delivery = WHOLE,
    ) -> Generation:
        """Sample requests; they are dealt so that tokens balance, always alike."""
        self._paused = False
        for rank in self._absence.standing:
            if self._served.path or self.refresh:
                self._bring_in(rank)
        # Dealt as if all engines were there: the order of the sequences, and so every sum over
        # them, is the same whichever are.
        dispatch = Dispatch(requests, range(self.size), sampling.max_tokens, delivery.groups)
        for rank in set(range(self.size)) - set(self.ranks):
            dispatch.deal_again(rank, self.ranks)
        arrivals = Arrivals(
            f"{self.role}: generate",
            self._launch.call_seconds,
            self._launch.position,
            self._launch.watch,
        )

        def send(hand: Hand, version: int) -> None:
            hand.call = next(self._calls)
            wanted, requests = replace(delivery, groups=hand.wanted), dispatch.requests(hand)
            call: Any = GenerationCall(hand.call, requests, sampling, version, wanted)
            actor = self.actors[hand.rank]
            if self._spec is not None and self._spec.join_running and self._owes(hand.rank):
                call = ray.put(call)
                actor.announce_ahead.remote(call)  # a refusal comes again when its turn has come
            arrivals.add(actor.generate_shards.remote(call), hand.rank, self.name(hand.rank))

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
        self._recover(next(n for n in range(self.size) if self.name(n) == name), error)

    @property
    def sampling(self) -> bool:
        """Whether any engine owes sequences."""
        return any(self._owes(rank) for rank in self.ranks)

    def sleep(self) -> Pending[None]:
        """Give the engines' GPU memory to other roles, if the spec says so and none samples."""
        sleeps = self._spec is not None and self._spec.sleep and not self.sampling
        return self._all(
            "sleep",
            lambda actor, _: actor.sleep.remote(),
            nothing,
            ranks=None if sleeps else (),
            again=bool(self._served.path or self.refresh),
        )

    def pause(self) -> Pending[None]:
        """Interrupt all generations, between two steps of each engine, until `resume`."""
        self._paused = True
        return self._all("pause", lambda actor, _: actor.interrupt.remote(), nothing, again=True)

    def abandon(self) -> None:
        """Interrupt all generations for good; the engines stay as they are.

        Raises:
            RehearsalError: an engine died, or does not get to the end of a step.
        """
        self.pause().result()
        self._open, self._paused = [], False
        self._all("forget", lambda actor, _: actor.forget.remote(), nothing).result()

    def _tell(self) -> None:
        """Have the account know what engines did in generations that go on."""
        ranks = [rank for rank in self.ranks if self._owes(rank)]
        if ranks:
            tell = lambda actor, _: actor.tell.remote()  # noqa: E731
            self._all("tell", tell, nothing, ranks=ranks, again=True).result()

    def resume(self, version: int) -> None:
        """Let interrupted generations go on under `version`, which the engines have admitted."""
        self._paused = False
        for generating in self._open:
            for hand in generating.hands:
                if hand.call != NOT_SENT:
                    stream = self.actors[hand.rank].proceed_shards.remote(hand.call, version)
                    generating.arrivals.add(stream, hand.rank, self.name(hand.rank))
            generating.send(version)

    def hold(self, batch: RolloutBatch) -> Rollouts:
        """Sequences of an earlier process, as if engines had just made them."""
        return Rollouts((ray.put(batch),), batch.summary())

    def fetch(self, rollouts: Rollouts) -> Pending[RolloutBatch]:
        """Bring whole sequences to the driver: for texts and labels, never for training."""
        return self._bring(rollouts.shards, RolloutBatch.concat)

    def load_checkpoint(self, path: str, version: int) -> Pending[list[WeightReceipt]]:
        """Load a Hugging Face folder of the same architecture, admitted as `version`."""
        self._served, self._changing = _Served(path, version), False
        self.join()
        return self._all(
            "load checkpoint",
            lambda actor, _: actor.load_checkpoint.remote(path, version),
            everything,
            again=True,
        )

    def receive_alone(self, rank: int, offer: WeightOffer) -> WeightReceipt:
        """Like `receive_weights`, of one engine."""
        return self._one("receive weights", rank, lambda a: a.receive_weights.remote(offer))

    def probe_alone(
        self,
        rank: int,
        prompts: list[tuple[int, ...]],
        max_tokens: int,
        temperature: float,
        version: int,
    ) -> Rollouts:
        """Like `probe`, of one engine."""
        shards: dict[int, Ref] = {}
        call = _keeping(
            shards, lambda a, _: a.probe_shard.remote(prompts, max_tokens, temperature, version)
        )
        summary = self._one("parity probe", rank, lambda a: call(a, rank))
        return Rollouts(_in_order(shards), summary)

    def admit_alone(self, rank: int, version: int) -> None:
        """Like `admit`, of one engine."""
        self._one("admit", rank, lambda a: a.admit.remote(version))

    def connect(self, address: GroupAddress) -> Pending[None]:
        """Join the transfer group: the sender is rank 0, each engine's workers follow in order."""
        ranks = self.ranks
        width = (address.world_size - 1) // len(ranks)  # tensor-parallel workers of one engine
        return self._all(
            "connect",
            lambda actor, rank: actor.connect.remote(address, 1 + ranks.index(rank) * width),
            nothing,
        )

    def receive_weights(self, offer: WeightOffer) -> Pending[list[WeightReceipt]]:
        """Take an offered transfer; the engines stay unverified until admitted."""
        self._changing = True
        return self._all(
            "receive weights", lambda actor, _: actor.receive_weights.remote(offer), everything
        )

    def probe(
        self, prompts: list[tuple[int, ...]], max_tokens: int, temperature: float, version: int
    ) -> Pending[Rollouts]:
        """Sample a few tokens on every engine, one shard each; serves unverified weights."""
        shards: dict[int, Ref] = {}
        return self._all(
            "parity probe",
            _keeping(
                shards,
                lambda actor, _: actor.probe_shard.remote(
                    prompts, max_tokens, temperature, version
                ),
            ),
            lambda summaries: joined(
                [Rollouts((s,), m) for s, m in zip(_in_order(shards), summaries, strict=True)]
            ),
        )

    def states(self) -> Pending[list[EngineState]]:
        """What each engine would serve."""
        return self._all("state", lambda actor, _: actor.state.remote(), everything)

    def admit(self, version: int) -> Pending[None]:
        """Let the engines serve `version`."""
        self._served, self._changing = _Served("", version), False
        return self._all("admit", lambda actor, _: actor.admit.remote(version), nothing)


class _ReplicaGroup(_Group):
    """Workers that share nothing: one that is lost is loaded again, and its call repeated."""

    replicas = True

    def __init__(self, launch: Launch) -> None:
        super().__init__(launch)
        self._spec: Any = None

    def _load(self, spec: Any) -> Pending[list[RoleInfo]]:
        self._spec = spec
        return self._all(
            "load",
            lambda actor, _: actor.load.remote(spec),
            self._remember,
            starting=True,
            again=True,
        )

    def _reload(self, rank: int) -> None:
        info = self._one("load", rank, lambda a: a.load.remote(self._spec), starting=True)
        if self.infos:
            self._remember_one(info)


class RewardGroup(_ReplicaGroup):
    """n replicas that score whole sequences."""

    role, worker = "reward", _RewardActor

    def load(self, spec: RewardSpec) -> Pending[list[RoleInfo]]:
        """Load the reward model or function."""
        return self._load(spec)

    def score(self, rollouts: Rollouts, asked: Sequence[Asked] = ()) -> Pending[Scores]:
        """One score or recorded failure a sequence, in the order of the summary."""
        ids = rollouts.summary.ids
        hands = [ids[i :: self.size] for i in range(self.size)]
        busy = [rank for rank, hand in enumerate(hands) if len(hand)]
        return self._all(
            "score",
            lambda actor, rank: actor.score_shards.remote(hands[rank], rollouts.shards, asked),
            lambda parts: gather_scores(parts, ids),
            ranks=busy,
            again=True,
        )

    def score_batch(self, batch: RolloutBatch, asked: Sequence[Asked] = ()) -> Pending[Scores]:
        """Like `score`, of sequences that the driver holds."""
        return self.score(Rollouts((ray.put(batch),), batch.summary()), asked)


class _LanguageModelGroup(_Group):
    """Workers that hold a causal language model."""

    def logprobs(
        self, works: Sequence[Work], rollouts: Rollouts, temperature: float
    ) -> Pending[Fields]:
        """Log-probabilities of the response tokens under the current weights, nats."""
        return self._fields(
            "logprobs",
            lambda actor, rank: actor.logprobs_of.remote(works[rank], rollouts.shards, temperature),
        )

    def fetch(self, fields: Fields) -> Pending[list[TokenField]]:
        """Bring token fields to the driver: for the parity probe, a few tokens a sync."""
        return self._bring(fields.shards, everything)


class ReferenceGroup(_ReplicaGroup, _LanguageModelGroup):
    """n replicas of a frozen language model."""

    role, worker = "reference", _ReferenceActor

    def load(self, spec: FrozenModelSpec) -> Pending[list[RoleInfo]]:
        """Load the frozen model."""
        self.packed = spec.packed
        return self._load(spec)

    def row_losses(self, batches: Sequence[TokenBatch]) -> Pending[list[FloatArray]]:
        """Summed loss of each row's targets, (B,) nats; one batch a replica."""
        return self._all(
            "row losses",
            lambda actor, rank: actor.row_losses.remote(batches[rank]),
            everything,
            again=True,
        )


class _TrainerGroup(_Group):
    """n ranks of one DeepSpeed process group."""

    _rests = False  # the ranks give GPU memory to the engines

    def join(self, spec: GroupSpec) -> Pending[list[RoleInfo]]:
        """Form the process group; once in the life of the processes."""
        self._rests = spec.rest != "none"
        host, port = self._all(
            "address", lambda actor, _: actor.address.remote(), first, ranks=[0], starting=True
        ).result()
        return self._all(
            "join",
            lambda actor, rank: actor.join.remote(RankAddress(rank, self.size, host, port), spec),
            self._remember,
            starting=True,
        )

    def load(self, spec: TrainModelSpec) -> Pending[None]:
        """Build model, optimizer and schedule, replacing what was there."""
        self.packed = spec.packed
        return self._all("load", lambda actor, _: actor.load.remote(spec), nothing, starting=True)

    def save(self, path: str, tokenizer_from: str) -> Pending[None]:
        """Write a Hugging Face folder; all ranks take part, rank 0 writes."""
        return self._all("save", lambda actor, _: actor.save.remote(path, tokenizer_from), nothing)

    def snapshot(self, folder: str) -> Pending[None]:
        """Copy the training state; each rank writes its part while training goes on."""
        return self._all("snapshot", lambda actor, _: actor.snapshot.remote(folder), nothing)

    def written(self) -> Pending[list[FileRecord]]:
        """The files of the last snapshot, once they are whole."""
        return self._all("write snapshot", lambda actor, _: actor.written.remote(), everything)

    def rest(self) -> Pending[None]:
        """Give GPU memory to engines that are about to sample, if the group's spec says so."""
        ranks = None if self._rests else ()
        return self._all("rest", lambda actor, _: actor.rest.remote(), nothing, ranks=ranks)

    def restore(self, folder: str) -> Pending[None]:
        """Go on from a snapshot."""
        return self._all(
            "restore", lambda actor, _: actor.restore.remote(folder), nothing, starting=True
        )


class PolicyGroup(_TrainerGroup, _LanguageModelGroup):
    """The policy's trainers."""

    role, worker = "policy", _PolicyActor

    def shares_rows(self) -> Pending[bool]:
        """Whether documents may share a row under the loaded model without seeing each other."""
        return self._all("ask", lambda actor, _: actor.shares_rows.remote(), first, ranks=[0])

    def train_supervised(self, steps: Sequence[SupervisedStep]) -> Pending[StepStats]:
        """One optimizer step on next-token loss; one share a rank."""
        return self._all(
            "train", lambda actor, rank: actor.train_supervised.remote(steps[rank]), first
        )

    def evaluate_supervised(self, steps: Sequence[SupervisedStep]) -> Pending[TextLoss]:
        """Loss without an update; one share a rank."""
        return self._all(
            "evaluate", lambda actor, rank: actor.evaluate_supervised.remote(steps[rank]), first
        )

    def update(
        self, steps: Sequence[list[PolicyStep]], experience: Experience, loss: PolicyLossSpec
    ) -> Pending[list[StepStats]]:
        """PPO steps in order; `steps[rank]` holds that rank's share of each."""
        return self._all(
            "update",
            lambda actor, rank: actor.update_on.remote(steps[rank], experience.shards, loss),
            first,
        )

    def transfer_address(self, receivers: int, backend: str) -> GroupAddress:
        """Where rank 0 will wait for the engines of a gloo or nccl transfer."""
        host, port = self._all(
            "address", lambda actor, _: actor.address.remote(), first, ranks=[0]
        ).result()
        return GroupAddress(host, port, 1 + receivers, backend)

    def connect(self, address: GroupAddress) -> Pending[None]:
        """Join the transfer group as its sender."""
        return self._all(
            "connect", lambda actor, _: actor.connect.remote(address), nothing, ranks=[0]
        )

    def publish_weights(self, version: int, transport: str) -> Pending[WeightOffer]:
        """Offer the current weights; through shared memory they are written at once."""
        return self._all(
            "publish weights",
            lambda actor, _: actor.publish_weights.remote(version, transport),
            first,
        )

    def send_weights(self, offer: WeightOffer) -> Pending[WeightReceipt]:
        """Send an offer to the connected engines; all ranks take part in gathering."""
        return self._all("send weights", lambda actor, _: actor.send_weights.remote(offer), first)


class CriticGroup(_TrainerGroup):
    """The trainers of scalar-head models: the reward model, then the value function."""

    role, worker = "critic", _CriticActor

    def train_rankings(self, steps: Sequence[RankingStep]) -> Pending[StepStats]:
        """One optimizer step of the reward model."""
        return self._all(
            "train rankings", lambda actor, rank: actor.train_rankings.remote(steps[rank]), first
        )

    def evaluate_rankings(self, steps: Sequence[RankingStep]) -> Pending[PairCounts]:
        """Held-out pairs ordered as labeled, and every score."""
        return self._all(
            "evaluate rankings",
            lambda actor, rank: actor.evaluate_rankings.remote(steps[rank]),
            _join_counts,
        )

    def score(self, batch: TokenBatch) -> Pending[FloatArray]:
        """Reward of whole sequences, (B,); every rank computes the same."""
        return self._all("score", lambda actor, _: actor.score.remote(batch), first)

    def shift_bias(self, mean: float) -> Pending[None]:
        """Lower every score by `mean`."""
        return self._all("shift bias", lambda actor, _: actor.shift_bias.remote(mean), nothing)

    def values(self, works: Sequence[Work], rollouts: Rollouts) -> Pending[Fields]:
        """Value of the state before each response token."""
        return self._fields(
            "values", lambda actor, rank: actor.values_of.remote(works[rank], rollouts.shards)
        )

    def build_experience(
        self,
        works: Sequence[Work],
        rollouts: Rollouts,
        old: Fields,
        reference: Fields,
        values: Fields,
        scores: Scores,
        shaping: ShapingSpec,
    ) -> Pending[Experience]:
        """Token rewards, advantages and returns; each rank builds and keeps its own share."""
        shards: dict[int, Ref] = {}
        inputs = (rollouts.shards, old.shards, reference.shards, values.shards)
        return self._all(
            "build experience",
            _keeping(
                shards,
                lambda actor, rank: actor.build_experience_of.remote(
                    works[rank], *inputs, scores, shaping
                ),
            ),
            lambda summaries: Experience(_in_order(shards), tuple(summaries)),
        )

    def update(
        self, steps: Sequence[list[StepWork]], experience: Experience, value_clip: float
    ) -> Pending[list[StepStats]]:
        """Value-function steps in order."""
        return self._all(
            "update",
            lambda actor, rank: actor.update_on.remote(steps[rank], experience.shards, value_clip),
            first,
        )


def _keeping(
    shards: dict[int, Ref], call: Callable[[Any, int], tuple[Ref, Ref]]
) -> Callable[[Any, int], Ref]:
    """Put aside the reference to the data of each rank; hand on the small one."""

    def keeping(actor: Any, rank: int) -> Ref:
        shard, small = call(actor, rank)
        shards[rank] = shard
        return small

    return keeping


def _in_order(shards: Mapping[int, Ref]) -> tuple[Ref, ...]:
    return tuple(shards[rank] for rank in sorted(shards))


def _join_counts(parts: list[PairCounts]) -> PairCounts:
    """The counts are those of all ranks already, the scores those of each."""
    return replace(parts[0], scores=tuple(s for part in parts for s in part.scores))

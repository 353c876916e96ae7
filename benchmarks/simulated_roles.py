"""The real role groups over simulated workers, on a simulated clock.

Nothing is computed. A call takes as long as a latency model says; the clock stands still while the
driver works, and moves when it waits. Engines decode every sequence that they hold at the same
time, a token per tick; a call is done when its longest sequence is. With `continuous` off an engine
serves one call after the other; with it on, as with `rollout.join_running`, a call that comes while
another is running joins it in the batch. What a step takes does not depend on how many share it.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import Any

import numpy as np

from orchestrator.config.cluster import RoleName
from orchestrator.config.schema import Config
from orchestrator.roles.fleet import Fleet
from orchestrator.roles.group import Launch
from orchestrator.supervision.backend import Call, WorkerClass, with_summary
from orchestrator.supervision.pending import Position
from orchestrator.telemetry.role_time import Account
from workers.process.call_timing import CallSpan, Reply
from workers.records.arrays import Ragged
from workers.records.generation import Finish, GenerationCall, RolloutBatch
from workers.records.processes import RoleInfo
from workers.records.training import ExperienceSummary, Scores, StepStats, TokenField
from workers.records.weights import WeightOffer, WeightReceipt

PROMPT_TOKENS = 32
_STATS = ("clip_fraction", "approx_kl", "entropy", "ratio_mean", "ratio_max",
          "value_clip_fraction", "explained_variance")  # fmt: skip


@dataclass(frozen=True)
class Latency:
    """Seconds."""

    token: float = 0.02  # one decoding step of an engine
    score: float = 2e-5  # a token, over all workers of a scoring role together, each
    train: float = 6e-5  # a token, likewise
    sync: float = 1.0  # moving weights into all engines
    call: float = 0.002  # any other call


@dataclass(frozen=True)
class Lengths:
    """Tokens of a response: log-normal around the median, and a few much longer."""

    median: int = 200
    sigma: float = 0.4  # of the logarithm
    long_share: float = 0.05
    long_factor: float = 20.0  # times the median

    def draw(self, seeds: Sequence[int]) -> np.ndarray:
        """The length of each sequence depends on its own seed alone."""
        radius, angle, chance = (_uniform(seeds, stream) for stream in (1, 2, 3))
        normal = np.sqrt(-2.0 * np.log(radius)) * np.cos(2.0 * np.pi * angle)  # Box and Muller
        body = self.median * np.exp(self.sigma * normal)
        long = chance < self.long_share
        return np.where(long, self.median * self.long_factor, body).astype(np.int64) + 1


def _uniform(seeds: Sequence[int], stream: int) -> np.ndarray:
    """A number in (0, 1) per seed: the mixing function of SplitMix64 (Steele et al. 2014)."""
    mixed = (np.array(seeds, np.uint64) + np.uint64(stream)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


class Clock:
    """Simulated seconds, and the real ones that the simulation itself has taken."""

    def __init__(self) -> None:
        self.now = 0.0
        self.own_seconds = 0.0
        self._depth = 0

    def wait_until(self, when: float) -> None:
        self.now = max(self.now, when)

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._began = time.process_time()

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.own_seconds += time.process_time() - self._began


@dataclass
class Job:
    """One call of an engine: when it begins and ends, by the engine's time."""

    begin: float
    end: float
    interruptions: int = 0
    taken: bool = False  # its sequences have been asked for


class Engine:
    """When the calls of one engine begin and end; its time stands still in a pause."""

    def __init__(self, clock: Clock, *, continuous: bool) -> None:
        self._clock, self._continuous = clock, continuous
        self._jobs: list[Job] = []
        self._paused_at: float | None = None
        self._paused_seconds = 0.0
        self._work = 0.0  # seconds of all calls, overlaps counted once
        self._free = 0.0  # when the last call ends

    @property
    def time(self) -> float:
        """The engine's time."""
        now = self._clock.now if self._paused_at is None else self._paused_at
        return now - self._paused_seconds

    @property
    def busy(self) -> float:
        """Seconds so far in which it had a call."""
        return self._work - max(0.0, self._free - self.time)

    def add(self, seconds: float) -> Job:
        begin = self.time if self._continuous else max(self.time, self._free)
        job = Job(begin, begin + seconds)
        self._work += max(0.0, job.end - max(self._free, begin))
        self._free = max(self._free, job.end)
        self._jobs = [*(each for each in self._jobs if each.end > self.time), job]
        return job

    def ready(self, job: Job | None = None) -> float:
        """When a call is done, by the clock; without one, when all calls are."""
        return self._clock.now + max(0.0, (self._free if job is None else job.end) - self.time)

    def ready_for_weights(self) -> float:
        """After the calls that are running, unless these are paused."""
        return self._clock.now if self._paused_at is not None else self.ready()

    def pause(self) -> None:
        if self._paused_at is None:
            self._paused_at = self._clock.now
            for job in self._jobs:
                job.interruptions += job.end > self.time

    def go_on(self) -> None:
        if self._paused_at is not None:
            self._paused_seconds += self._clock.now - self._paused_at
            self._paused_at = None


@dataclass(frozen=True)
class Mark:
    """How far everything is when an iteration begins to train."""

    now: float
    trained: int  # sequences
    rollout_busy: float  # seconds, mean over engines
    policy_busy: float


class World:
    """What all workers know."""

    def __init__(self, latency: Latency, lengths: Lengths, sequences: int, engines: int) -> None:
        self.clock, self.latency, self.lengths = Clock(), latency, lengths
        self.sequences = sequences  # of the run; the numbers after them are those of probes
        self.tokens = np.full(sequences + engines, PROMPT_TOKENS + 1)  # of each sequence
        self.began = np.zeros(sequences, np.int64)  # version that drew the first token of each
        self.engines: list[Engine] = []
        self.published = 0  # version
        self.lags: Counter[int] = Counter()  # how old what is trained on is
        self.trained = 0
        self.marks: list[Mark] = []


@dataclass(eq=False)
class SimRef:
    """A record, and when it is there."""

    at: float
    value: Any


@dataclass
class SimBackend:
    """The workers of one role, which share its work evenly: each call takes 1 / `size`."""

    clock: Clock
    size: int
    make: Callable[[SimBackend, int], Any]
    free_at: float = 0.0
    busy: float = 0.0

    def spend(self, seconds: float) -> float:
        """When a call is done that follows all earlier ones of the role."""
        self.free_at = max(self.clock.now, self.free_at) + seconds / self.size
        self.busy += seconds / self.size
        return self.free_at

    def create(self, worker: WorkerClass, rank: int, options: Mapping[str, Any]) -> Any:
        return self.make(self, rank)

    def start(self, worker: Any, call: Call, *args: Any) -> Any:
        with self.clock:
            at, found = worker.answer(call.verb, *args)
            large, small = (None, found) if call.split is None else call.split(found)
            ref = SimRef(at, Reply(small, (CallSpan(call.verb, 0.0, 0.0, 0.0, "simulated"),)))
            return ref if call.split is None else (SimRef(at, large), ref)

    def stream(self, worker: Any, call: Call, *args: Any) -> Any:
        with self.clock:
            first, *_ = args
            return worker.stream(call.verb, first.value if isinstance(first, SimRef) else first)

    def tell(self, worker: Any, call: Call, *args: Any) -> None:
        """Announcements change nothing: an engine knows whether calls join those that run."""

    def health(self, worker: Any, what: str) -> Any:
        raise NotImplementedError("simulated workers are never lost: nobody asks for their health")

    def wait(self, refs: Sequence[Any], count: int, seconds: float, *, fetch: bool) -> list[Any]:
        with self.clock:
            if seconds > 0.0:
                self.clock.wait_until(min(map(attrgetter("at"), refs)))
            return list(islice((ref for ref in refs if ref.at <= self.clock.now), count))

    def get(self, ref: SimRef, seconds: float) -> Any:
        return ref.value

    def put(self, record: Any) -> SimRef:
        return SimRef(0.0, record)

    def end(self, worker: Any) -> None:
        """There is no process."""


class SimModel:
    """A worker of any role but rollout."""

    def __init__(self, world: World, role: str, group: SimBackend, rank: int) -> None:
        self._world, self._role, self._group, self._rank = world, role, group, rank

    def answer(self, verb: str, *args: Any) -> tuple[float, Any]:
        """When a call is done, and its answer."""
        seconds, found = self._answer(verb, *args)
        return self._group.spend(seconds), found

    def _answer(self, verb: str, *args: Any) -> tuple[float, Any]:
        latency = self._world.latency
        match verb:
            case "logprobs" | "values":
                ids = args[0].ids
                numbers = Ragged(np.zeros(len(ids), np.float32), np.arange(len(ids) + 1))
                return latency.score * self._tokens(ids), TokenField(ids, numbers)
            case "score":
                scores = np.zeros(len(args[0]), np.float32)
                found = Scores(args[0], scores, ("",) * len(scores))
                return latency.score * self._tokens(found.ids), found
            case "build_experience":
                return latency.call, (None, self._experience(args[0].ids))
            case "update":
                ids = np.concatenate([getattr(step, "ppo", step).work.ids for step in args[0]])
                stats = StepStats(0.0, 1.0, 1.0, True, dict.fromkeys(_STATS, 0.0))
                return latency.train * self._tokens(np.unique(ids)), [stats] * len(args[0])
            case "publish_weights":
                self._world.published = args[0]
                return latency.call, WeightOffer(args[0], (), 8, args[1], "", "0")
            case "save":
                shutil.copytree(args[1], args[0], dirs_exist_ok=True)
            case "address":
                return latency.call, ("simulated", 1)
        return latency.call, RoleInfo(self._role, self._rank, 0, "simulated", "cpu")

    def _tokens(self, ids: np.ndarray) -> int:
        return int(self._world.tokens[ids].sum())

    def _experience(self, ids: np.ndarray) -> ExperienceSummary:
        world, zeros = self._world, np.zeros(len(ids), np.float32)
        world.lags.update((world.published - world.began[ids]).tolist())
        world.trained += len(ids)
        if self._rank == self._group.size - 1:
            busy = float(np.mean([engine.busy for engine in world.engines]))
            world.marks.append(Mark(world.clock.now, world.trained, busy, self._group.busy))
        return ExperienceSummary(ids, zeros, zeros, len(ids), 0.0, float(len(ids)), 0.0, 0.0, 0.0)


class SimStream:
    """The one part of a call of an engine: a large record, then a small one."""

    def __init__(self, engine: Engine, job: Job, batch: Callable[[], RolloutBatch]) -> None:
        self._job, self._batch, self._interruptions = job, batch, job.interruptions
        self._ready = engine.ready(job)
        self._records: list[Any] = []

    @property
    def at(self) -> float:
        """When the next record is there, or the call has ended."""
        return self._ready if self._job.interruptions == self._interruptions else 0.0

    def __next__(self) -> SimRef:
        if not self._job.taken and self._job.interruptions == self._interruptions:
            self._job.taken = True
            large, small = with_summary(self._batch())
            self._records = [large, Reply(small, ())]
        if not self._records:
            raise StopIteration
        return SimRef(0.0, self._records.pop(0))


class SimEngine:
    """A worker of the rollout role; what it serves is the version that was admitted last."""

    def __init__(self, world: World, group: SimBackend, rank: int, *, continuous: bool) -> None:
        self._world, self._group, self._rank = world, group, rank
        self._engine = Engine(world.clock, continuous=continuous)
        world.engines.append(self._engine)
        self._admitted: list[tuple[float, int]] = []  # since when, by the engine's time; version
        self._calls: dict[int, tuple[Job, Callable[[], RolloutBatch]]] = {}

    def stream(self, verb: str, call: Any) -> SimStream:
        """A new call, or the rest of one that was interrupted."""
        if verb == "proceed":
            return SimStream(self._engine, *self._calls[call])
        lengths = self._world.lengths.draw([seed for r in call.requests for seed in r.seeds])
        job = self._engine.add(float(lengths.max()) * self._world.latency.token)
        self._calls[call.number] = job, lambda: self._sampled(call, lengths, job)
        return SimStream(self._engine, *self._calls[call.number])

    def answer(self, verb: str, *args: Any) -> tuple[float, Any]:
        """When a call is done, and its answer."""
        latency = self._world.latency
        match verb:
            case "receive_weights":
                receipt = WeightReceipt(args[0].version, args[0].checksum, 8, 0.0)
                return self._engine.ready_for_weights() + latency.sync, receipt
            case "probe":
                ids = np.array([self._world.sequences + self._rank])
                found = _sequences(ids, ids, np.ones(1, np.int64), args[3], args[3])
                return self._group.spend(latency.token * args[1]), found
            case "pause":
                self._engine.pause()
            case "admit":
                self._engine.go_on()
                self._admitted.append((self._engine.time, args[0]))
            case "start":
                self._admitted.append((self._engine.time, args[1]))
        info = RoleInfo("rollout", self._rank, 0, "simulated", "cpu")
        return self._group.spend(latency.call), info

    def _sampled(self, call: GenerationCall, lengths: np.ndarray, job: Job) -> RolloutBatch:
        since, versions = zip(*self._admitted, strict=True)
        first = versions[int(np.searchsorted(since, job.begin, side="right")) - 1]
        ids = np.array([i for r in call.requests for i in r.ids], np.int64)
        prompts = np.array([r.prompt_id for r in call.requests for _ in r.ids], np.int64)
        self._world.tokens[ids], self._world.began[ids] = PROMPT_TOKENS + lengths, first
        return _sequences(ids, prompts, lengths, first, versions[-1])


def _sequences(
    ids: np.ndarray, prompts: np.ndarray, lengths: np.ndarray, first: int, last: int
) -> RolloutBatch:
    """Sequences of these lengths, drawn by weights from version `first` to `last`."""
    rows = np.arange(len(ids) + 1)
    offsets = np.concatenate([[0], lengths.cumsum()])
    return RolloutBatch(
        ids, prompts, Ragged(np.zeros(offsets[-1] + PROMPT_TOKENS * len(ids), np.int32),
                             offsets + PROMPT_TOKENS * rows),
        np.full(len(ids), PROMPT_TOKENS), Ragged(np.zeros(offsets[-1], np.float32), offsets),
        np.full(len(ids), Finish.STOP.value), np.tile([first, last], (len(ids), 1)),
    )  # fmt: skip


class SimRoles(Fleet):
    """The fleet of a run, on simulated workers."""

    def __init__(self, config: Config, engines: int, scorers: int, sequences: int) -> None:
        nowhere: Any = None
        super().__init__(config, nowhere, Position("ppo"), Account())
        self.world = World(Latency(), Lengths(), sequences, engines)
        self._sizes = dict.fromkeys(RoleName, scorers) | {RoleName.rollout: engines}

    def _launch(self, name: RoleName) -> Launch:
        continuous = self._config.rollout.join_running

        def make(group: SimBackend, rank: int) -> Any:
            if name is RoleName.rollout:
                return SimEngine(self.world, group, rank, continuous=continuous)
            return SimModel(self.world, name.value, group, rank)

        size = self._sizes[name]
        backend = SimBackend(self.world.clock, size, make)
        return Launch(backend, lambda _: {}, size, 1e9, 1e9, self._position)

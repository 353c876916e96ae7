"""Role groups without processes: `orchestrator.roles.interfaces` on a clock of their own.

Nothing is computed. A verb takes as long as a latency model says, the clock stands still while the
driver works, and moves when it waits. Engines decode every sequence that they hold at the same
time, a token a tick; a call is done when its longest sequence is. With `continuous` off an engine
serves one call after the other; with it on, as with `rollout.join_running`, a call that comes while
another is running joins it in the batch. What a step takes does not depend on how many share it.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from orchestrator.config.cluster import RoleName
from orchestrator.roles.interfaces import Experience, Fields, Rollouts
from workers.records.arrays import Ragged
from workers.records.generation import Finish, RolloutBatch, RolloutSummary
from workers.records.processes import RoleInfo
from workers.records.training import ExperienceSummary, Scores, StepStats, TokenField
from workers.records.weights import WeightOffer, WeightReceipt

T = TypeVar("T")
PROMPT_TOKENS = 32


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
        random = np.random.Generator(np.random.PCG64(np.array(seeds, np.uint64)))
        body = self.median * np.exp(self.sigma * random.standard_normal(len(seeds)))
        long = random.random(len(seeds)) < self.long_share
        return np.where(long, self.median * self.long_factor, body).astype(np.int64) + 1


class Clock:
    """Simulated seconds, and the real ones that the simulation itself has taken."""

    def __init__(self) -> None:
        self.now = 0.0
        self.own_seconds = 0.0
        self._depth = 0
        self.on_move: list[Callable[[float, float], None]] = []

    def wait_until(self, when: float) -> None:
        if when > self.now:
            for moved in self.on_move:
                moved(self.now, when)
            self.now = when

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._began = time.process_time()

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.own_seconds += time.process_time() - self._began


class SimAnswer(Generic[T]):
    """A call that has started; `ready` is asked when somebody waits."""

    def __init__(self, clock: Clock, ready: Callable[[], float], value: Callable[[], T]) -> None:
        self._clock, self._ready, self._value = clock, ready, value

    def result(self) -> T:
        with self._clock:
            self._clock.wait_until(self._ready())
            return self._value()

    def parts(self) -> Iterator[T]:
        yield self.result()


@dataclass
class Job:
    """One call of `generate`: what is left of it on each engine, seconds."""

    left: np.ndarray  # (E,)
    start: np.ndarray  # (E,) NaN = not begun


class Engines:
    """All engines as arrays over their number E."""

    def __init__(self, clock: Clock, size: int, *, continuous: bool) -> None:
        self.clock, self.size, self.continuous = clock, size, continuous
        self.jobs: list[Job] = []
        self.busy = np.zeros(size)
        self.paused = False
        clock.on_move.append(self.advance)

    def advance(self, begin: float, end: float) -> None:
        if self.paused:
            return
        room = np.full(self.size, end - begin)
        most = np.zeros(self.size)
        for job in self.jobs:
            used = np.minimum(room, job.left)
            begins = np.isnan(job.start) & (used > 0)
            job.start[begins] = end - room[begins]
            job.left = np.where(used < job.left, job.left - used, 0.0)
            most = np.maximum(most, used)
            if not self.continuous:
                self.busy += used
                room = room - used
        if self.continuous:
            self.busy += most
        self.jobs = [job for job in self.jobs if job.left.any()]

    def add(self, left: np.ndarray) -> Job:
        self.jobs.append(Job(left, np.full(self.size, np.nan)))
        return self.jobs[-1]

    def ready(self, job: Job | None = None) -> float:
        """When a call is done on every engine; without one, when all calls are."""
        waited = np.zeros(self.size)
        for each in self.jobs:
            waited = np.maximum(waited, each.left) if self.continuous else waited + each.left
            if each is job:
                return self.clock.now + float((each.left if self.continuous else waited).max())
        return self.clock.now + (float(waited.max()) if job is None else 0.0)


class SimGroup:
    """Workers that take one call after the other."""

    packed = True

    def __init__(self, clock: Clock, size: int, latency: Latency) -> None:
        self.clock, self.size, self.latency = clock, size, latency
        self.free_at = self.busy = 0.0

    def _do(self, seconds: float, value: T) -> SimAnswer[T]:
        with self.clock:
            self.free_at = max(self.clock.now, self.free_at) + seconds
            self.busy += seconds
            ready = self.free_at
        return SimAnswer(self.clock, lambda: ready, lambda: value)

    def load(self, spec: object) -> SimAnswer[Any]:
        return self._do(self.latency.call, [])

    def save(self, path: str, tokenizer_from: str) -> SimAnswer[None]:
        shutil.copytree(tokenizer_from, path, dirs_exist_ok=True)
        return self._do(self.latency.call, None)

    def snapshot(self, folder: str) -> SimAnswer[None]:
        return self._do(self.latency.call, None)

    def written(self) -> SimAnswer[list[Any]]:
        return self._do(self.latency.call, [])


def _tokens(rollouts: Rollouts) -> int:
    return int((rollouts.summary.prompt_lengths + rollouts.summary.response_lengths).sum())


class SimRollout(SimGroup):
    """The engines; what they serve is the version that was admitted last."""

    def __init__(
        self, clock: Clock, size: int, latency: Latency, lengths: Lengths, *, continuous: bool
    ) -> None:
        super().__init__(clock, size, latency)
        self.engines = Engines(clock, size, continuous=continuous)
        self.lengths = lengths
        self.admitted: list[tuple[float, int]] = []  # since when, version
        self.ranks = list(range(size))

    def start(self, spec: object, version: int) -> SimAnswer[list[RoleInfo]]:
        self.admitted.append((self.clock.now, version))
        return self._do(self.latency.call, [])

    def generate(
        self, requests: Sequence[Any], sampling: object, version: int, delivery: object = None
    ) -> SimAnswer[Rollouts]:
        with self.clock:
            seeds = [seed for r in requests for seed in r.seeds]
            lengths = self.lengths.draw(seeds)
            samples = len(requests[0].ids)
            engine = np.repeat(np.arange(len(requests)) % self.size, samples)
            longest = np.zeros(self.size)
            np.maximum.at(longest, engine, lengths)
            job = self.engines.add(longest * self.latency.token)
        return SimAnswer(
            self.clock, lambda: self.engines.ready(job),
            lambda: self._rollouts(requests, lengths, job.start[engine]),
        )  # fmt: skip

    def _rollouts(
        self, requests: Sequence[Any], lengths: np.ndarray, start: np.ndarray
    ) -> Rollouts:
        ids = np.array([i for r in requests for i in r.ids], np.int64)
        prompts = np.repeat([r.prompt_id for r in requests], len(requests[0].ids))
        since = np.array([when for when, _ in self.admitted])
        versions = np.array([version for _, version in self.admitted])
        first = versions[np.searchsorted(since, start, side="right") - 1]
        last = np.full_like(first, versions[-1])
        return Rollouts(
            tuple(range(self.size)),
            RolloutSummary(
                ids, prompts, np.full(len(ids), PROMPT_TOKENS, np.int64), lengths,
                np.full(len(ids), Finish.STOP.value, np.int64), np.stack([first, last], axis=1),
            ),
            (ids,),
        )  # fmt: skip

    def join(self) -> None:
        """No engine is ever lost."""

    def receive_weights(self, offer: WeightOffer) -> SimAnswer[list[WeightReceipt]]:
        """Behind the calls that are running, unless these are paused."""
        receipts = [WeightReceipt(offer.version, offer.checksum, 8, 0.0)] * self.size
        with self.clock:
            idle = self.clock.now if self.engines.paused else self.engines.ready()
        return SimAnswer(self.clock, lambda: idle + self.latency.sync, lambda: receipts)

    def probe(
        self, prompts: Sequence[object], max_tokens: int, temperature: float, version: int,
        ranks: None = None,
    ) -> SimAnswer[Rollouts]:  # fmt: skip
        ids = np.arange(self.size, dtype=np.int64)
        ones = np.ones(self.size, np.int64)
        versions = np.full((self.size, 2), version)
        return self._do(
            self.latency.token * max_tokens,
            Rollouts((), RolloutSummary(ids, ids, ones, ones, ones, versions), ()),
        )

    def fetch(self, rollouts: Rollouts) -> SimAnswer[RolloutBatch]:
        s, n = rollouts.summary, len(rollouts.summary)
        rows = Ragged(np.zeros(2 * n, np.int32), np.arange(n + 1) * 2)
        logprobs = Ragged(np.zeros(n, np.float32), np.arange(n + 1))
        batch = RolloutBatch(
            s.ids, s.prompt_ids, rows, s.prompt_lengths, logprobs, s.finish, s.versions
        )
        return self._do(self.latency.call, batch)

    def admit(self, version: int) -> SimAnswer[None]:
        answer = self._do(self.latency.call, None)
        self.admitted.append((self.clock.now, version))
        return answer

    def sleep(self) -> SimAnswer[None]:
        """It has a GPU of its own."""
        return SimAnswer(self.clock, lambda: self.clock.now, lambda: None)

    def pause(self) -> SimAnswer[None]:
        self.engines.paused = True
        return self._do(self.latency.call, None)

    def resume(self, version: int) -> None:
        self.engines.paused = False


class SimScorer(SimGroup):
    """Reward and reference."""

    def score(self, rollouts: Rollouts, asked: object = ()) -> SimAnswer[Scores]:
        ids = rollouts.summary.ids
        scores = Scores(ids, np.zeros(len(ids), np.float32), ("",) * len(ids))
        return self._do(self.latency.score * _tokens(rollouts) / self.size, scores)

    def logprobs(self, works: object, rollouts: Rollouts, temperature: float) -> SimAnswer[Fields]:
        ids = rollouts.summary.ids
        fields = Fields((ids,), (ids,))
        return self._do(self.latency.score * _tokens(rollouts) / self.size, fields)


class SimTrainer(SimScorer):
    """Policy and critic; counts how old what it trains on is."""

    def __init__(self, clock: Clock, size: int, latency: Latency) -> None:
        super().__init__(clock, size, latency)
        self.published: list[int] = []  # versions
        self.lags: Counter[int] = Counter()
        self.trained = 0
        self.marks: list[Mark] = []
        self.mark: Callable[[int], Mark] | None = None

    def rest(self) -> SimAnswer[None]:
        return SimAnswer(self.clock, lambda: self.clock.now, lambda: None)

    def values(self, works: object, rollouts: Rollouts) -> SimAnswer[Fields]:
        return self.logprobs(works, rollouts, 1.0)

    def build_experience(
        self, works: Sequence[Any], rollouts: Rollouts, *_: object
    ) -> SimAnswer[Experience]:
        with self.clock:
            first = rollouts.summary.versions[:, 0]
            self.lags.update((self.published[-1] - first).tolist())
            self.trained += len(first)
            if self.mark is not None:
                self.marks.append(self.mark(self.trained))
            summaries = [
                ExperienceSummary(
                    w.ids, np.zeros(len(w.ids), np.float32), np.zeros(len(w.ids), np.float32),
                    len(w.ids), 0.0, float(len(w.ids)), 0.0, 0.0, 0.0,
                )
                for w in works
            ]  # fmt: skip
            self._waiting = _tokens(rollouts)
        return self._do(self.latency.call, Experience((self._waiting,), tuple(summaries)))

    def update(
        self, steps: Sequence[Sequence[Any]], experience: Experience, loss: object
    ) -> SimAnswer[list[StepStats]]:
        names = ("clip_fraction", "approx_kl", "entropy", "ratio_max", "value_clip_fraction",
                 "explained_variance")  # fmt: skip
        stats = [StepStats(0.0, 1.0, 1.0, True, dict.fromkeys(names, 0.0)) for _ in steps[0]]
        return self._do(self.latency.train * experience.shards[0] / self.size, stats)

    def publish_weights(self, version: int, transport: str) -> SimAnswer[WeightOffer]:
        self.published.append(version)
        return self._do(self.latency.call, WeightOffer(version, (), 8, transport, "", "0"))

    def fetch(self, fields: Fields) -> SimAnswer[list[TokenField]]:
        ids = fields.shards[0]
        zeros = Ragged(np.zeros(len(ids), np.float32), np.arange(len(ids) + 1))
        return self._do(self.latency.call, [TokenField(ids, zeros)])


@dataclass(frozen=True)
class Mark:
    """How far everything is when an iteration begins to train."""

    now: float
    trained: int  # sequences
    rollout_busy: float  # seconds, mean over engines
    policy_busy: float


@dataclass
class SimRoles:
    """All groups of one run."""

    clock: Clock
    rollout: SimRollout
    reward: SimScorer
    reference: SimScorer
    policy: SimTrainer
    critic: SimTrainer
    made: list[RoleInfo] = field(default_factory=list)

    def bring_up(self, *names: RoleName) -> None:
        """They are there."""

    def release(self, *names: RoleName) -> None:
        """They stay."""

    def holds(self, name: RoleName) -> bool:
        return True

    def look_after(self) -> None:
        """They are always well."""

    def infos(self) -> list[RoleInfo]:
        return self.made


def make_roles(
    engines: int, scorers: int, latency: Latency, lengths: Lengths, *, continuous: bool
) -> SimRoles:
    clock = Clock()
    policy, critic = SimTrainer(clock, scorers, latency), SimTrainer(clock, scorers, latency)
    rollout = SimRollout(clock, engines, latency, lengths, continuous=continuous)
    policy.mark = lambda trained: Mark(
        clock.now, trained, float(rollout.engines.busy.mean()), policy.busy
    )
    reward, reference = SimScorer(clock, scorers, latency), SimScorer(clock, scorers, latency)
    return SimRoles(clock, rollout, reward, reference, policy, critic)

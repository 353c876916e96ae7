"""The sides of the comparison behind one interface: the run's rollout group, and the others."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import psutil

from benchmarks.rollout_throughput.figures import Turn, split
from benchmarks.rollout_throughput.others import WORKERS, Answered
from orchestrator.cluster.ray_cluster import Cluster
from orchestrator.config.cluster import RoleName
from orchestrator.config.schema import Config
from orchestrator.config.seeds import derive
from orchestrator.planning.worker_specs import rollout_environment, rollout_spec
from orchestrator.roles.fleet import Fleet
from orchestrator.roles.group import Each, Group, Launch
from orchestrator.supervision.pending import Position, everything
from orchestrator.supervision.ray_backend import RayBackend
from orchestrator.telemetry.role_time import Account
from workers.data.records import Prompt
from workers.model_folders.shape import read_shape
from workers.records.generation import Delivery, GenerationRequest, Sampling
from workers.records.processes import RoleInfo
from workers.records.specs import RolloutSpec

VERSION = 1
_EACH = Delivery(part_sequences=1)  # each prompt's sequences as soon as they are done


class Side(Protocol):
    """One way to generate."""

    def turn(self, requests: list[GenerationRequest]) -> Turn: ...

    def latencies(self, requests: list[GenerationRequest]) -> list[float]:
        """Seconds from the request to each sequence."""
        ...

    def close(self) -> None: ...


def spec_of(config: Config, folder: Path, eos: int, ids: int, *, fixed: bool) -> RolloutSpec:
    """The engine's specification; responses of a `fixed` length have an end that is never drawn.

    Args:
        config: The run.
        folder: The model.
        eos: The tokenizer's end of sequence.
        ids: Token ids of the tokenizer; embeddings often have more rows.
        fixed: Responses end at the limit alone.
    """
    if fixed:
        ids = min(ids, read_shape(folder).vocabulary - 1)
        eos = ids  # ids from here on are not drawn
    return rollout_spec(config, str(folder), eos, ids)


def requests_of(
    prompts: Sequence[Prompt], samples: int, seed: int, turn: int
) -> list[GenerationRequest]:
    """K sequences of each prompt, with ids that are unique in the turn."""
    return [
        GenerationRequest(
            n,
            prompt.tokens,
            tuple(range(n * samples, (n + 1) * samples)),
            tuple(derive(seed, "benchmark", turn, n, k) for k in range(samples)),
        )
        for n, prompt in enumerate(prompts)
    ]


def prompt_tokens(requests: Sequence[GenerationRequest]) -> int:
    """Prompt tokens of all sequences."""
    return sum(len(each.prompt_tokens) * len(each.ids) for each in requests)


class Ours:
    """The run's role group of engines."""

    def __init__(self, config: Config, cluster: Cluster, spec: RolloutSpec) -> None:
        self._account = Account()
        self.fleet = Fleet(config, cluster, Position("benchmark"), self._account,
                           guard=cluster.guard)  # fmt: skip
        self.sampling = Sampling(config.rollout.temperature, config.rollout.max_response_tokens)
        self._delivery = Delivery(config.rollout.stream_sequences)
        self.rollout = self.fleet.rollout
        self._infos = self.rollout.start(spec, VERSION).result()

    def turn(self, requests: list[GenerationRequest]) -> Turn:
        self._account.untold()
        cpu, own, began = _cpu_seconds(self._infos), time.thread_time(), time.perf_counter()
        made = self.rollout.generate(requests, self.sampling, VERSION, self._delivery).result()
        seconds, own = time.perf_counter() - began, time.thread_time() - own
        after = _cpu_seconds(self._infos)
        spans = [s for s in self._account.untold() if s.verb == "generate_parts"]
        engines = [sum(s.end - s.begin for s in spans if s.rank == rank)
                   for rank in {s.rank for s in spans}]  # fmt: skip
        return Turn(
            prompt_tokens(requests),
            int(made.summary.response_lengths.sum()),
            seconds,
            None if cpu is None or after is None else after - cpu,
            split(seconds, engines, own),
        )

    def latencies(self, requests: list[GenerationRequest]) -> list[float]:
        found: list[float] = []
        began = time.perf_counter()
        for part in self.rollout.generate(requests, self.sampling, VERSION, _EACH).parts():
            found += [time.perf_counter() - began] * len(part.summary)
        return found

    def close(self) -> None:
        self.fleet.release(RoleName.rollout)


class _Others(Group):
    """Workers of another side; a lost one ends the benchmark."""

    def __init__(self, launch: Launch, side: str) -> None:
        self.role, self.worker = side, WORKERS[side]
        super().__init__(launch)

    def start(self, spec: RolloutSpec) -> list[RoleInfo]:
        return self._all("start", self._remember, spec, starting=True).result()

    def turn(self, shares: list[list[GenerationRequest]], sampling: Sampling) -> list[Answered]:
        return self._all("turn", everything, Each(shares), sampling).result()

    def latencies(
        self, shares: list[list[GenerationRequest]], sampling: Sampling
    ) -> list[list[float]]:
        return self._all("latencies", everything, Each(shares), sampling).result()


class Other:
    """Another side: as many workers as there are engines, each with its share of the requests."""

    def __init__(
        self, side: str, place: int, config: Config, cluster: Cluster, spec: RolloutSpec
    ) -> None:
        """Start it.

        Args:
            side: Its name.
            place: How many sides have workers before it in the placement.
            config: The run.
            cluster: Where it runs, with room for all sides.
            spec: Of one engine.
        """
        engines = config.cluster.roles.rollout.workers
        environment = rollout_environment(config)
        launch = Launch(
            backend=RayBackend(),
            options=lambda rank: cluster.bundle(
                RoleName.rollout, place * engines + rank, environment
            ),
            workers=engines,
            start_seconds=config.run.role_start_seconds,
            call_seconds=config.run.call_seconds,
            position=Position("benchmark"),
        )
        self._sampling = Sampling(config.rollout.temperature, config.rollout.max_response_tokens)
        self._group = _Others(launch, side)
        self._group.start(replace(spec, interruptible=False))

    def turn(self, requests: list[GenerationRequest]) -> Turn:
        answers = self._group.turn(self._shares(requests), self._sampling)
        tokens, seconds, cpu = zip(*answers, strict=True)
        return Turn(prompt_tokens(requests), sum(tokens), max(seconds), sum(cpu))

    def latencies(self, requests: list[GenerationRequest]) -> list[float]:
        found = self._group.latencies(self._shares(requests), self._sampling)
        return [seconds for each in found for seconds in each]

    def _shares(self, requests: list[GenerationRequest]) -> list[list[GenerationRequest]]:
        return [requests[rank :: self._group.size] for rank in range(self._group.size)]

    def close(self) -> None:
        self._group.kill()


def _cpu_seconds(infos: Sequence[RoleInfo]) -> float | None:
    """Processor seconds of engines so far; None if any is on another machine."""
    if any(info.node != platform.node() for info in infos):
        return None
    times = [psutil.Process(info.pid).cpu_times() for info in infos]
    return sum(each.user + each.system for each in times)

"""Estimate of a PPO iteration on GPUs: seconds by phase, and idle shares by role.

Nothing is measured: work is divided by the rates of `Hardware`. A phase lasts as long as its
busiest GPU, on which the roles that share it compute one after the other. Waiting within a phase
counts as work, so idle shares are lower bounds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.batching.batch_sizes import PPO_STAGES, ppo_arithmetic
from orchestrator.config.cluster import RoleName
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.training import OldLogprobs
from orchestrator.planning.model_sizes import ModelSize, number_bytes, sequences_in_cache
from orchestrator.planning.placement import Layout, Place
from orchestrator.planning.speed.hardware import Hardware

LENGTH_SHARE = 0.5  # mean length of prompts and responses as a fraction of their limits
_PASS = 2  # floating-point operations per parameter and token, forward
_TRAIN = 6  # forward and backward; 8 if activations are computed again
_LAUNCH = 3e-4  # seconds to launch the kernels of a layer, forward; backward twice that
_OPTIMIZER_BYTES = 30  # per parameter: read and write weights, moments and gradient
_STATE_BYTES = 12  # per parameter: fp32 master weight and two moments
_PROBE_SECONDS = 0.2  # parity probe of a weight sync
_PATHS = {"shm": 5e9, "gloo": 1e9}  # bytes/s through host memory and through TCP

Seconds = dict[RoleName, float]


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """One PPO iteration."""

    phases: dict[str, float]  # generate, score, train, sync -> seconds
    seconds: float  # of the iteration; less than the sum where phases overlap
    sequences: int
    idle: dict[RoleName, float]  # share of the iteration

    @property
    def throughput(self) -> float:
        """Sequences per second."""
        return self.sequences / self.seconds


def estimate_step(
    config: Config, layout: Layout, sizes: Mapping[RoleName, ModelSize | None], gpu: Hardware
) -> StepEstimate | None:
    """Estimate an iteration of the run's first PPO stage.

    Args:
        config: A checked configuration with GPUs.
        layout: Its placement.
        sizes: Model of each role; None = a role without a model, which takes no time.
        gpu: What the GPUs do.

    Returns:
        None if there is no PPO stage, or the policy's size is not known.
    """
    stages = [stage for stage in config.stage_names if stage in PPO_STAGES]
    policy = sizes.get(RoleName.policy)
    if not stages or policy is None:
        return None
    work = _Work(config, layout, sizes, gpu, stages[0])
    jobs = {
        "generate": {RoleName.rollout: work.generate(policy)},
        "score": work.score(),
        "train": work.train(),
        "sync": dict.fromkeys((RoleName.rollout, RoleName.policy), work.sync(policy)),
    }
    placed = gpus_of(layout)
    phases = {name: _longest(seconds, placed) for name, seconds in jobs.items()}
    phases["sync"] = work.sync(policy)  # both sides at once
    total = _iteration(config, phases, placed)
    busy = {role: sum(job.get(role, 0.0) for job in jobs.values()) for role in layout.roles}
    idle = {role: max(0.0, 1 - seconds / total) for role, seconds in busy.items()}
    return StepEstimate(phases, total, work.sequences, idle)


def gpus_of(layout: Layout) -> dict[tuple[int, int], set[RoleName]]:
    """The roles on each GPU, by node and number; a worker of several GPUs counts as one."""
    found: dict[tuple[int, int], set[RoleName]] = {}
    for index, node in enumerate(layout.nodes):
        sharing: set[Place] = set()
        for share in node.shared:
            found[index, len(found)] = {place.role for place in share.places}
            sharing |= set(share.places)
        for place in node.places:
            if place not in sharing:
                found[index, len(found)] = {place.role}
    return found


def _longest(jobs: Seconds, placed: Mapping[tuple[int, int], set[RoleName]]) -> float:
    return max((sum(jobs.get(role, 0.0) for role in roles) for roles in placed.values()), default=0)


def _iteration(
    config: Config, phases: Mapping[str, float], placed: Mapping[tuple[int, int], set[RoleName]]
) -> float:
    apart = all(
        roles == {RoleName.rollout} for roles in placed.values() if RoleName.rollout in roles
    )
    working = phases["score"] + phases["train"]
    if config.algorithm.staleness and apart:
        return max(phases["generate"], working) + phases["sync"]
    return phases["generate"] + working + phases["sync"]


class _Work:
    """Seconds of each role's part of an iteration."""

    def __init__(
        self,
        config: Config,
        layout: Layout,
        sizes: Mapping[RoleName, ModelSize | None],
        gpu: Hardware,
        stage: StageName,
    ) -> None:
        self._config, self._layout, self._sizes, self._gpu = config, layout, sizes, gpu
        self._plan = ppo_arithmetic(config, stage)
        self.sequences = self._plan.sequences_per_iteration
        rollout = config.rollout
        self._prompt = LENGTH_SHARE * rollout.max_prompt_tokens
        self._response = LENGTH_SHARE * rollout.max_response_tokens
        self._tokens = self.sequences * (self._prompt + self._response)
        self._text = stage is StageName.ppo_ptx

    def generate(self, size: ModelSize) -> float:
        """An engine's share: prompts, then steps of all sequences that run at once."""
        rollout, gpu = self._config.rollout, self._gpu
        shards, share = rollout.tensor_parallel_size, self._plan.sequences_per_engine
        held = max(1, sequences_in_cache(self._config, size))
        at_once = min(share, rollout.max_concurrent_sequences, held)
        per_token = _PASS * size.parameters / (shards * gpu.flops * gpu.forward)
        prefill = per_token * self._prompt * share
        # Places are filled again as long as sequences wait; then the longest ones go on.
        steps = max(0, share - at_once) * self._response / at_once + rollout.max_response_tokens
        batch = share * self._response / steps
        number = number_bytes(rollout.precision)
        context = self._prompt + self._response / 2
        read = number * (size.parameters + size.kv_numbers_per_token * batch * context)
        reading = read / (shards * gpu.memory * gpu.decoding)
        computing = per_token * batch
        launching = size.layers * ((2e-4 if rollout.enforce_eager else 2e-5) + 4e-5 * (shards > 1))
        return prefill + steps * (max(reading, computing) + launching + 2e-3)

    def score(self) -> Seconds:
        """Passes of reward model, reference and critic, and the policy's for old logprobs."""
        roles = [RoleName.reward, RoleName.reference, RoleName.critic]
        if self._config.algorithm.old_logprobs is not OldLogprobs.rollout:
            roles.append(RoleName.policy)
        return {
            role: self._passes(role, size, self._tokens, _PASS, self._gpu.forward, moves=1)
            for role in roles
            if role in self._layout.roles and (size := self._sizes.get(role)) is not None
        }

    def train(self) -> Seconds:
        """Updates of policy and critic."""
        config, found = self._config, defaultdict[RoleName, float](float)
        each = _TRAIN + (_PASS if config.model.gradient_checkpointing else 0)
        steps = self._plan.steps_per_iteration
        for role in (RoleName.policy, RoleName.critic):
            size = self._sizes.get(role)
            if role not in self._layout.roles or size is None:
                continue
            tokens = self._tokens * config.algorithm.epochs
            if role is RoleName.policy and self._text:
                rows = self._plan.text_rows_per_step or self._plan.documents_per_step
                tokens += steps * rows * config.pretrain.row_tokens
            found[role] = self._passes(role, size, tokens, each, self._gpu.training, moves=3)
            ranks = config.cluster.roles.of(role).workers
            found[role] += steps * _OPTIMIZER_BYTES * size.parameters / ranks / self._gpu.memory
        return dict(found)

    def _passes(
        self, role: RoleName, size: ModelSize, tokens: float, each: int, reached: float, moves: int
    ) -> float:
        """The longest of computing, launching kernels, and the collectives of ZeRO beside it.

        Args:
            role: Whose ranks share the tokens.
            size: Its model.
            tokens: Of an iteration.
            each: Operations per parameter and token.
            reached: Share of the GPU's rate.
            moves: Times that a layer is visited and its weights travel: 1 forward, 3 in training.
        """
        config, gpu = self._config, self._gpu
        ranks = config.cluster.roles.of(role).workers
        steps = self._plan.steps_per_iteration if moves > 1 else 1
        batches = steps * math.ceil(tokens / steps / ranks / config.trainer.micro_batch_tokens)
        computing = max(
            each * size.parameters * tokens / (ranks * gpu.flops * reached),
            moves * _LAUNCH * size.layers * batches,
        )
        if role not in (RoleName.policy, RoleName.critic) or ranks == 1:
            return computing
        weights = number_bytes(config.trainer.precision) * size.parameters * (ranks - 1) / ranks
        if config.trainer.zero_stage == 3:  # weights are gathered in each pass of each micro-batch
            moved = moves * weights * batches
        else:  # gradients are reduced and weights gathered in each optimizer step
            moved = 2 * weights * steps if moves > 1 else 0.0
        return max(computing, moved / (self._link(role) * gpu.links))

    def _link(self, *roles: RoleName) -> float:
        nodes = {
            index
            for index, node in enumerate(self._layout.nodes)
            for place in node.places
            if place.role in roles
        }
        return self._gpu.network if len(nodes) > 1 else self._gpu.node_link

    def sync(self, size: ModelSize) -> float:
        """Gather and send the weights; what sleeps on the host comes from there and goes back."""
        config, gpu = self._config, self._gpu
        weights = number_bytes(config.trainer.precision) * size.parameters
        link = self._link(RoleName.policy, RoleName.rollout) * gpu.links
        seconds = weights / _PATHS.get(config.rollout.transport, link) + _PROBE_SECONDS
        if config.trainer.zero_stage == 3:
            seconds += weights / (self._link(RoleName.policy) * gpu.links)
        if config.rollout.sleep:
            number = number_bytes(config.rollout.precision)
            moved = number * size.parameters / config.rollout.tensor_parallel_size
            seconds += 2 * moved / gpu.host_link
        if config.trainer.rest_on_host:
            ranks = config.cluster.roles.policy.workers
            seconds += 2 * _STATE_BYTES * size.parameters / ranks / gpu.host_link
        return seconds

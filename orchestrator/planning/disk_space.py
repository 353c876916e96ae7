"""Disk space of a run: its checkpoints and models, from the plan's estimates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.config.cluster import RoleName
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.training import SFTBest
from orchestrator.planning.model_sizes import FLOAT, number_bytes
from orchestrator.planning.plan import Plan

_STATE = 3 * FLOAT  # a master weight and two moments of AdamW


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Bytes in the run folder; logs, samples and plots are not counted."""

    checkpoint: int  # one checkpoint from which the run resumes
    checkpoints: int  # those that are kept, and the one being written
    models: int  # the published models of all stages

    @property
    def total(self) -> int:
        """All of them."""
        return self.checkpoints + self.models


def disk_space(config: Config, plan: Plan) -> DiskSpace | None:
    """Estimate the space that a run needs; None if the sizes of its models are unknown.

    An upper bound, since a checkpoint has the state of the trainers at work only, and frozen
    weights have none. Adapters, and checkpoints of `keep_every` and `keep_best`, are not counted.
    """
    trained = {m.role: m.parameters for m in plan.memory}
    policy, critic = trained.get(RoleName.policy), trained.get(RoleName.critic, 0)
    if policy is None:
        return None
    adapters = bool(config.model.lora.rank)
    averaged = FLOAT if config.algorithm.ema_decay > 0 else 0
    checkpoint = 0 if adapters else policy * (_STATE + averaged) + critic * _STATE
    number = number_bytes(config.trainer.precision)
    models = sum(
        number * (critic if stage.stage is StageName.reward_model else policy)
        for stage in plan.stages
        if stage.makes
    )
    models += number * policy * _compared(config)
    kept = config.run.checkpoint.keep_last + 1
    return DiskSpace(checkpoint, kept * checkpoint, models)


def _compared(config: Config) -> int:
    """Weights that SFT keeps to compare them."""
    settings = config.sft
    if StageName.sft not in config.stages or settings.keep_best is SFTBest.none:
        return 0
    if not settings.keep_best_every:
        return settings.epochs
    # the number of steps of `epochs` depends on the data
    return 0 if settings.epochs else math.ceil(settings.steps / settings.keep_best_every)

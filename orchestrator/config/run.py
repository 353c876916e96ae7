"""Settings of the run itself: its folder, deadlines, checkpoints, supervision and loggers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.config.ranges import at_least, needed, path, positive, seconds
from workers.errors import ConfigError


class StageName(Enum):
    """The stages of the recipe, in the order in which they depend on each other."""

    pretrain = "pretrain"
    sft = "sft"
    reward_model = "reward_model"
    ppo = "ppo"
    ppo_ptx = "ppo_ptx"
    pretrain_large = "pretrain_large"
    evaluate = "evaluate"


class Best(Enum):
    """Which value of a metric is the best."""

    highest = "highest"
    lowest = "lowest"


@dataclass(slots=True, kw_only=True)
class StageSteps:
    """One number for each stage that trains: optimizer steps, of PPO iterations."""

    pretrain: int = at_least(0, 250)
    sft: int = at_least(0, 50)
    reward_model: int = at_least(0, 50)
    ppo: int = at_least(0, 5)
    ppo_ptx: int = at_least(0, 5)
    pretrain_large: int = at_least(0, 250)


@dataclass(slots=True, kw_only=True)
class CheckpointConfig:
    """How often a run saves itself, and what it keeps.

    The end of a stage is always saved, and what the reward model learns from once it is labeled.
    """

    every_steps: int | None = at_least(0, None)  # in every stage; null = the numbers of stage_steps
    stage_steps: StageSteps = field(default_factory=StageSteps)  # 0 = not within the stage
    keep_last: int = positive(2)  # newest checkpoints that stay
    keep_every: int = at_least(0, 0)  # steps that this divides stay too; 0 = none
    keep_best: str = ""  # a metric of PPO, e.g. ppo/score_mean: its best checkpoint stays too
    best_is: Best = Best.highest

    def steps(self, stage: str) -> int:
        """Steps of a stage between two checkpoints; 0 = none within it."""
        if self.every_steps is not None:
            return self.every_steps
        return getattr(self.stage_steps, stage, 0)


@dataclass(slots=True, kw_only=True)
class SupervisionConfig:
    """When a worker counts as lost, and how often it is made anew."""

    # between two probes of a worker; all are asked, busy or not
    probe_seconds: float = seconds(10.0)
    probes_to_condemn: int = positive(3)  # unanswered in a row: it is lost after as many intervals
    # a busy worker without one model pass or engine step hangs
    stall_seconds: float = seconds(600.0)
    max_restarts: int = at_least(0, 3)  # of one worker within the window; 0 = a loss ends the run
    restart_window_seconds: float = seconds(3600.0)


class InputCheck(Enum):
    """How a run that goes on recognises the data, models and functions that it was given."""

    stat = "stat"  # size and time of change; files up to 64 MiB by content
    hash = "hash"  # all by content
    skip = "skip"


@dataclass(slots=True, kw_only=True)
class RunConfig:
    """Where the run writes, and how long anything may take."""

    # the run folder itself; conf/config.yaml adds experiment and time
    dir: str = path("outputs", needed=True)
    overwrite: bool = False  # allow a non-empty run folder
    plan_only: bool = False  # print the plan, look at all that is given, and stop
    role_start_seconds: float = seconds(300.0)  # deadline for a role to come up
    call_seconds: float = seconds(1800.0)  # deadline for one call to a role
    collective_seconds: float = seconds(300.0)  # deadline inside a collective
    # data, models and functions that have changed since the checkpoint are refused
    verify_inputs: InputCheck = InputCheck.stat
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    # from SIGTERM to the next step boundary; 0 = stop at once
    grace_seconds: float = seconds(30.0, or_none=True)


@dataclass(slots=True, kw_only=True)
class LoggerConfig:
    """Sinks beside metrics.jsonl."""

    live: bool = True  # live view on a terminal; plain lines elsewhere
    wandb: bool = False
    wandb_project: str = needed("rehearsal")
    wandb_mode: str = needed("offline")  # online | offline
    tensorboard: bool = False
    sink_seconds: float = seconds(5.0)  # a sink that takes longer is dropped, warned once

    def check(self, key: str) -> None:
        """Whether the mode is known."""
        if self.wandb_mode not in ("online", "offline"):
            raise ConfigError(
                f"wandb_mode={self.wandb_mode!r}",
                where=f"{key}.wandb_mode",
                fix="use online or offline",
            )

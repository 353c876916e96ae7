"""Settings of the run itself: its folder, deadlines, checkpoints, supervision and loggers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.config.ranges import at_least, needed, path, positive, seconds
from workers.errors import ConfigError


class StageName(Enum):
    """The stages of the recipe; each comes after the stages that it depends on."""

    pretrain = "pretrain"
    sft = "sft"
    reward_model = "reward_model"
    ppo = "ppo"
    ppo_ptx = "ppo_ptx"
    pretrain_large = "pretrain_large"
    evaluate = "evaluate"


class Best(Enum):
    """Whether the highest or the lowest value of a metric is the best."""

    highest = "highest"
    lowest = "lowest"


@dataclass(slots=True, kw_only=True)
class StageSteps:
    """One number per training stage: optimizer steps; for PPO, iterations."""

    pretrain: int = at_least(0, 250)
    sft: int = at_least(0, 50)
    reward_model: int = at_least(0, 50)
    ppo: int = at_least(0, 5)
    ppo_ptx: int = at_least(0, 5)
    pretrain_large: int = at_least(0, 250)


@dataclass(slots=True, kw_only=True)
class CheckpointConfig:
    """How often a run saves checkpoints, and which it keeps.

    The end of a stage is always saved, and so are the labeled rankings of the reward model.
    """

    every_steps: int | None = at_least(0, None)  # interval in every stage; null = stage_steps
    stage_steps: StageSteps = field(default_factory=StageSteps)  # 0 = none within the stage
    keep_last: int = positive(2)  # number of newest checkpoints to keep
    keep_every: int = at_least(0, 0)  # also keep checkpoints whose step is a multiple; 0 = off
    keep_best: str = ""  # PPO metric, e.g. ppo/score_mean: also keep its best checkpoint; "" = off
    best_is: Best = Best.highest

    def steps(self, stage: str) -> int:
        """Steps between two checkpoints of a stage; 0 = no checkpoint within the stage."""
        if self.every_steps is not None:
            return self.every_steps
        return getattr(self.stage_steps, stage, 0)


@dataclass(slots=True, kw_only=True)
class SupervisionConfig:
    """When a worker counts as lost, and how often it is restarted."""

    # interval between two probes of each worker, busy or idle
    probe_seconds: float = seconds(10.0)
    probes_to_condemn: int = positive(3)  # a worker is lost after this many unanswered in a row
    # a busy worker counts as hung after this long without a model pass or an engine step
    stall_seconds: float = seconds(600.0)
    max_restarts: int = at_least(0, 3)  # per worker within the window; 0 = a loss ends the run
    restart_window_seconds: float = seconds(3600.0)


class InputCheck(Enum):
    """How a resumed run detects changes of its data, models and functions."""

    stat = "stat"  # by size and modification time; files up to 64 MiB by content
    hash = "hash"  # all files by content
    skip = "skip"  # no check


@dataclass(slots=True, kw_only=True)
class RunConfig:
    """Where the run writes, and its deadlines."""

    # the run folder itself; conf/config.yaml appends experiment and time
    dir: str = path("outputs", needed=True)
    overwrite: bool = False  # allow a non-empty run folder
    plan_only: bool = False  # print the plan, check all given inputs, and stop
    role_start_seconds: float = seconds(300.0)  # deadline for the start of a role
    call_seconds: float = seconds(1800.0)  # deadline for one call to a role
    collective_seconds: float = seconds(300.0)  # deadline for one collective operation
    # on resume, refuse data, models and functions that changed since the checkpoint
    verify_inputs: InputCheck = InputCheck.stat
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    # how long the run may take after SIGTERM to reach the next step boundary; 0 = stop at once
    grace_seconds: float = seconds(30.0, or_none=True)


@dataclass(slots=True, kw_only=True)
class LoggerConfig:
    """Metric sinks in addition to metrics.jsonl."""

    live: bool = True  # live view on a terminal; plain lines if the output is no terminal
    wandb: bool = False
    wandb_project: str = needed("rehearsal")
    wandb_mode: str = needed("offline")  # online | offline
    tensorboard: bool = False
    sink_seconds: float = seconds(5.0)  # a sink that takes longer is dropped with one warning

    def check(self, key: str) -> None:
        """Check that wandb_mode is online or offline."""
        if self.wandb_mode not in ("online", "offline"):
            raise ConfigError(
                f"wandb_mode={self.wandb_mode!r}",
                where=f"{key}.wandb_mode",
                fix="use online or offline",
            )

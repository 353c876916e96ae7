"""Settings of the run itself: its folder, deadlines, checkpoints, supervision and loggers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from orchestrator.config.ranges import at_least, needed, path, positive, seconds, secret
from workers.errors import ConfigError


class StageName(StrEnum):
    """The stages of the recipe; each comes after the stages that it depends on."""

    pretrain = "pretrain"
    constitution = "constitution"
    sft = "sft"
    label = "label"
    reward_model = "reward_model"
    ppo = "ppo"
    ppo_ptx = "ppo_ptx"
    dpo = "dpo"
    online_dpo = "online_dpo"
    rejection_sampling = "rejection_sampling"
    pretrain_large = "pretrain_large"
    collect = "collect"
    evaluate = "evaluate"
    overoptimization = "overoptimization"


class Best(Enum):
    """Whether the highest or the lowest value of a metric is the best."""

    highest = "highest"
    lowest = "lowest"


@dataclass(slots=True, kw_only=True)
class StageSteps:
    """One number per training stage: optimizer steps, or iterations where a stage samples."""

    pretrain: int = at_least(0, 250)
    """Optimizer steps between two checkpoints."""
    sft: int = at_least(0, 50)
    """Optimizer steps between two checkpoints."""
    reward_model: int = at_least(0, 50)
    """Optimizer steps between two checkpoints."""
    ppo: int = at_least(0, 5)
    """Iterations between two checkpoints."""
    ppo_ptx: int = at_least(0, 5)
    """Iterations between two checkpoints."""
    dpo: int = at_least(0, 50)
    """Optimizer steps between two checkpoints."""
    online_dpo: int = at_least(0, 5)
    """Iterations between two checkpoints."""
    rejection_sampling: int = at_least(0, 1)
    """Iterations between two checkpoints."""
    pretrain_large: int = at_least(0, 250)
    """Optimizer steps between two checkpoints."""


@dataclass(slots=True, kw_only=True)
class CheckpointConfig:
    """How often a run saves checkpoints, and which it keeps.

    The end of a stage is always saved, and so are the labeled rankings of the reward model.
    """

    every_steps: int | None = at_least(0, None)
    """Steps between two checkpoints in every stage; null = stage_steps."""
    stage_steps: StageSteps = field(default_factory=StageSteps)
    """Interval of each stage; 0 = none within the stage."""
    keep_last: int = positive(2)
    """Number of newest checkpoints to keep."""
    keep_every: int = at_least(0, 0)
    """Also keep checkpoints whose step is a multiple; 0 = off."""
    keep_best: str = ""
    """Metric, e.g. ppo/score_mean: also keep the best checkpoint of its stages; "" = off."""
    best_is: Best = Best.highest
    """Whether the best value of `keep_best` is the highest or the lowest."""

    def steps(self, stage: str) -> int:
        """Steps between two checkpoints of a stage; 0 = no checkpoint within the stage."""
        if self.every_steps is not None:
            return self.every_steps
        return getattr(self.stage_steps, stage, 0)


@dataclass(slots=True, kw_only=True)
class SupervisionConfig:
    """When a worker counts as lost, and how often it is restarted."""

    probe_seconds: float = seconds(10.0)
    """Interval between two probes of each worker, busy or idle."""
    probes_to_condemn: int = positive(3)
    """A worker is lost after this many unanswered in a row."""
    stall_seconds: float = seconds(600.0)
    """A busy worker counts as hung after this long without a model pass or an engine step."""
    max_restarts: int = at_least(0, 3)
    """Restarts per worker within the window; 0 = a loss ends the run."""
    restart_window_seconds: float = seconds(3600.0)
    """Window in which the restarts of a worker are counted."""


_URL = re.compile(r"(?P<protocol>[a-z][a-z0-9+.-]*)://(?P<place>[^\s?#]*[^\s?#/][^\s?#]*)")


def _trouble_of_url(url: str) -> tuple[str, str] | None:
    """What is wrong with the URL of a mirror, and the fix; the URL may hold a secret."""
    parts = _URL.fullmatch(url)
    examples = "write s3://BUCKET/PATH, gs://BUCKET/PATH or file:///FOLDER"
    if parts is None or "::" in url:
        return "this is no plain URL", examples
    if "@" in parts["place"] and ":" in parts["place"].partition("@")[0]:
        return (
            "the URL holds a password, which config.yaml would keep",
            "give it to the driver in another way, e.g. FSSPEC_FTP_PASSWORD in the environment",
        )
    if {".", ".."} & {*parts["place"].split("/")}:
        return "the URL holds . or ..", "write the path that is meant"
    if parts["protocol"] == "memory":
        return "memory:// ends with the run's process", examples
    if parts["protocol"] in ("file", "local") and not parts["place"].startswith("/"):
        return "this is no absolute path", "write file:///FOLDER, with three slashes"
    return None


class InputCheck(Enum):
    """How a resumed run detects changes of its data, models and functions."""

    stat = "stat"
    """By size and modification time; files up to 64 MiB by content."""
    hash = "hash"
    """All files by content."""
    skip = "skip"
    """No check."""


@dataclass(slots=True, kw_only=True)
class RunConfig:
    """Where the run writes, and its deadlines."""

    dir: str = path("outputs", needed=True)
    """The run folder itself; conf/config.yaml appends experiment and time."""
    overwrite: bool = False
    """Allow a non-empty run folder."""
    plan_only: bool = False
    """Print the plan, check all given inputs, and stop."""
    role_start_seconds: float = seconds(300.0)
    """Deadline for the start of a role."""
    call_seconds: float = seconds(1800.0)
    """Deadline for one call to a role."""
    collective_seconds: float = seconds(300.0)
    """Deadline for one collective operation."""
    verify_inputs: InputCheck = InputCheck.stat
    """On resume, refuse data, models and functions that changed since the checkpoint."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When checkpoints of the run are saved, and which are kept."""
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    """How lost workers are detected and how often they are restarted."""
    grace_seconds: float = seconds(30.0, or_none=True)
    """How long the run may take after SIGTERM to reach the next step boundary; 0 = stop at once."""
    mirror: str = secret("")
    """URL of fsspec, e.g. s3://BUCKET/PATH, to which checkpoints are copied; "" = none."""
    mirror_seconds: float = seconds(60.0)
    """A call to the mirror that makes no progress for this long has failed."""
    mirror_end_seconds: float = seconds(600.0, or_none=True)
    """How long the end of the run waits for the last copies; 0 = not at all."""

    def check(self, key: str) -> None:
        """Check that `mirror` is one plain URL without a password."""
        if self.mirror and (trouble := _trouble_of_url(self.mirror)):
            raise ConfigError(
                trouble[0],
                where=f"{key}.mirror",
                fix=trouble[1],
            )


@dataclass(slots=True, kw_only=True)
class LoggerConfig:
    """Metric sinks in addition to metrics.jsonl."""

    live: bool = True
    """Live view on a terminal; plain lines if the output is no terminal."""
    wandb: bool = False
    """Also send metrics to Weights & Biases."""
    wandb_project: str = needed("rehearsal")
    """Project in Weights & Biases."""
    wandb_mode: str = needed("offline")
    """Mode of Weights & Biases: online or offline."""
    tensorboard: bool = False
    """Also write metrics for TensorBoard into the run folder."""
    prometheus: bool = False
    """Also serve metrics to Prometheus while the run is running."""
    prometheus_address: str = needed("127.0.0.1")
    """Address that Prometheus finds them at; 0.0.0.0 = all of this machine, open to everyone."""
    prometheus_port: int = at_least(0, 0, 65_535)
    """Port that Prometheus finds them at; 0 = a free one, written into RUN/prometheus.json."""
    sink_seconds: float = seconds(5.0)
    """A sink that takes longer is dropped with one warning."""

    def check(self, key: str) -> None:
        """Check that wandb_mode is online or offline."""
        if self.wandb_mode not in ("online", "offline"):
            raise ConfigError(
                f"wandb_mode={self.wandb_mode!r}",
                where=f"{key}.wandb_mode",
                fix="use online or offline",
            )

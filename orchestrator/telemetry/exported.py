"""What a run exports to Prometheus: names, units, and what each metric is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PREFIX = "rehearsal_"


@dataclass(frozen=True, slots=True)
class Present:
    """State of a run at one moment; another thread reads it."""

    stage: str = ""  # "" = none has begun
    workers: Mapping[str, int] = field(default_factory=dict)  # by role, lost ones left out
    losses: Mapping[str, int] = field(default_factory=dict)  # by role, over the whole run
    unfinished: int = 0  # sequences asked of the engines


@dataclass(frozen=True, slots=True)
class Exported:
    """A metric of Prometheus.

    `source` is the recorded metric that it is made of, without its family ("" = the present state).
    With two labels there is one recorded metric for each value of the second: SOURCE/VALUE.
    """

    stem: str  # name without prefix, and without the _total that the counters end in
    unit: str
    meaning: str
    source: str = ""
    labels: tuple[str, ...] = ("stage",)  # besides `run`, which all have
    counts: bool = False  # a counter: the sum over steps; otherwise the newest value

    @property
    def name(self) -> str:
        """The name that Prometheus shows."""
        return f"{PREFIX}{self.stem}{'_total' if self.counts else ''}"


STAGE = Exported(
    "stage", "1", "Always 1; the label names the stage in progress.", labels=("stage",)
)
STEP = Exported("step", "steps", "Number of the newest recorded step.")
STEP_TIME = Exported(
    "last_step_timestamp_seconds", "s", "When the newest step was recorded, since 1970.", labels=()
)
WORKERS = Exported(
    "workers", "workers", "Workers in use: engines that serve, replicas, ranks.", labels=("role",)
)
LOSSES = Exported(
    "worker_losses", "workers", "Workers lost over the whole run.", labels=("role",), counts=True
)
UNFINISHED = Exported(
    "unfinished_sequences", "sequences", "Asked of the engines and not finished by them.", labels=()
)
OF_STATE = (STAGE, STEP, STEP_TIME, WORKERS, LOSSES, UNFINISHED)

OF_RECORDS = (
    Exported(
        "tokens_per_second", "tokens/s", "Counted tokens trained per second.", "tokens_per_second"
    ),
    Exported("iteration_seconds", "s", "Duration of the PPO iteration.", "step_seconds"),
    Exported(
        "phase_seconds",
        "s",
        "Duration of one phase of the iteration.",
        "seconds",
        ("stage", "phase"),
    ),
    Exported(
        "role_idle_ratio",
        "ratio",
        "Share of the iteration in which a role waited, mean over its workers.",
        "idle_share",
        ("stage", "role"),
    ),
    Exported(
        "weight_sync_seconds",
        "s",
        "Weight sync: transfer, check, parity probe, admission.",
        "sync_seconds",
    ),
    Exported(
        "staleness_updates", "updates", "Policy updates since the oldest sequence began.", "lag_max"
    ),
    Exported(
        "open_sequences",
        "sequences",
        "Asked for ahead of their turn, finished or not.",
        "open",
    ),
    Exported(
        "generated_sequences",
        "sequences",
        "Asked of the engines by this process.",
        "generated",
        counts=True,
    ),
    Exported(
        "trained_sequences", "sequences", "Trained on by this process.", "trained", counts=True
    ),
    Exported(
        "dropped_sequences",
        "sequences",
        "Dropped by this process.",
        "dropped",
        ("stage", "reason"),
        counts=True,
    ),
    Exported(
        "skipped_optimizer_steps",
        "steps",
        "Skipped by this process, because they were not finite.",
        "skipped_steps",
        counts=True,
    ),
)
EXPORTED = (*OF_STATE, *OF_RECORDS)


def exported_as(recorded: str) -> tuple[Exported, str] | None:
    """The metric that a recorded one is exported as, and the value of its label ("" = no label)."""
    _, _, name = recorded.partition("/")
    source, _, value = name.partition("/")
    for metric in OF_RECORDS:
        if metric.source == source and (len(metric.labels) == 2) == bool(value):
            return metric, value
    return None

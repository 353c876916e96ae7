"""Schema of the driver's state in a checkpoint (progress.json)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.checkpoints.ppo_state import Counters
from orchestrator.results.findings import Findings

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Scored:
    """Metric values of checkpoints; see `best.Scores.state`."""

    metric: str = ""
    values: dict[str, dict[int, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SavedCorrections:
    """See `corrections.Corrections.state`."""

    excluded: list[int]
    kl_scale: float


@dataclass(frozen=True, slots=True)
class Measured:
    """See `recorder.Telemetry.state`."""

    stages: dict[str, float]
    phases: list[tuple[str, str, float]]
    run_id: str


@dataclass(frozen=True, slots=True)
class Place:
    """The fields that are needed of a checkpoint when no run resumes from it."""

    stage: str
    step: int
    finished: list[str] = field(default_factory=list)
    checkpoints: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """The fields that `capture` writes; a file is checked against them before a run resumes."""

    stage: str
    step: int
    own: dict[str, Any]
    finished: list[str]
    counters: Counters
    amends: SavedCorrections
    seconds: float
    checkpoints: dict[str, str]
    findings: Findings
    telemetry: Measured
    appended: dict[str, int]
    scores: Scored = field(default_factory=Scored)

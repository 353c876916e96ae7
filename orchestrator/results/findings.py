"""Results that the stages collect during a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.results.constitution_figures import ConstitutionFigures
from orchestrator.results.environment_gains import Gain
from orchestrator.results.label_figures import LabelFigures
from orchestrator.results.overoptimization import Overoptimization
from orchestrator.results.reward_model_figures import RewardModelFigures
from orchestrator.results.summary import EvaluationRow, Judging, LedgerTotals, Preference

_KEPT = ("score_mean", "kl_sequence")
_SYNCS_TIMED = 1000  # progress.json is written with every checkpoint, so it must stay small


@dataclass(slots=True)
class Findings:
    """Results of the stages, for the summary."""

    reward_model: RewardModelFigures = field(default_factory=RewardModelFigures)
    # of variants of its stage, by name
    reward_models: dict[str, RewardModelFigures] = field(default_factory=dict)
    labels: dict[str, LabelFigures] = field(default_factory=dict)  # of runs of the stage label
    # of runs of the stage constitution
    constitutions: dict[str, ConstitutionFigures] = field(default_factory=dict)
    # stage run -> score_mean and kl_sequence of its last iteration
    last_steps: dict[str, dict[str, float]] = field(default_factory=dict)
    models: dict[str, EvaluationRow] = field(default_factory=dict)
    preferred: list[Preference] = field(default_factory=list)
    judging: Judging | None = None
    environment_gains: tuple[Gain, ...] = ()
    overoptimization: Overoptimization | None = None
    ledger: LedgerTotals = field(default_factory=LedgerTotals)
    drops: dict[str, int] = field(default_factory=dict)  # sequences, by reason
    syncs: int = 0  # number of weight syncs
    sync_seconds: list[float] = field(default_factory=list)  # of the newest weight syncs
    parity_max: float | None = None
    first_step_seconds: float | None = None
    start: dict[str, float] = field(
        default_factory=dict
    )  # part -> seconds, to the first PPO update

    def stepped(self, stage: str, values: Mapping[str, float]) -> None:
        """Keep what a policy's newest iteration measured, of its metrics by full name."""
        for name, value in values.items():
            if name.rpartition("/")[2] in _KEPT and name.count("/") == 1:
                self.last_steps.setdefault(stage, {})[name.rpartition("/")[2]] = value

    def synced(self, seconds: float) -> None:
        """Count a weight sync; the seconds of only the newest are kept, enough for a median."""
        # checkpoints of earlier versions have no count, only the list of seconds
        self.syncs = max(self.syncs, len(self.sync_seconds)) + 1
        self.sync_seconds = [*self.sync_seconds, seconds][-_SYNCS_TIMED:]

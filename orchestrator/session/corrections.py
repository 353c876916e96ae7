"""Corrections after a NaN or an excess of KL, so that a replay does not fail in the same way.

A replay from the same checkpoint is exact and would produce the same NaN. So a run that goes back
to a checkpoint excludes the sequences that caused the NaN, or raises the KL coefficient, and stores
that in its later checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.batching.batch_sizes import ONLINE_STAGES
from orchestrator.config.run import StageName
from orchestrator.roles.interfaces import Rollouts, joined
from orchestrator.run_files.folder import append_lines
from workers.errors import NonFiniteError
from workers.records.generation import RolloutBatch, RolloutSummary

if TYPE_CHECKING:
    from orchestrator.session.session import Session

REASON = "not finite"  # of the drop, in the ledger
# Their errors name sequences; those of supervised steps name rows.
_SAMPLING = {stage.value for stage in ONLINE_STAGES} - {StageName.rejection_sampling.value}
_KL_FACTOR = 2.0


@dataclass(slots=True)
class Corrections:
    """The corrections of a run; going back to a checkpoint keeps them."""

    excluded: set[int] = field(default_factory=set)  # sequences that are not trained on
    kl_scale: float = 1.0  # factor on the KL coefficient
    places: set[tuple[str, int]] = field(default_factory=set)  # (stage, step) of corrected errors
    made: int = 0  # number of corrections in this process

    def for_numbers(self, error: NonFiniteError, stage: str, step: int, kind: str = "") -> bool:
        """Exclude the sequences named by `error`; False if a replay would fail in the same way.

        Args:
            error: The error.
            stage: Name of the stage run.
            step: Of the stage run.
            kind: The stage that it runs, if that has another name.
        """
        new = {*error.ids} - self.excluded
        if not new and (stage, step) in self.places:
            return False
        self.places.add((stage, step))
        if (kind or stage) in _SAMPLING:
            self.excluded |= new
        self.made += 1
        return True

    def for_kl(self) -> None:
        """Raise the KL coefficient from here on."""
        self.kl_scale *= _KL_FACTOR
        self.made += 1

    def state(self) -> dict[str, Any]:
        """State as plain values."""
        return {"excluded": sorted(self.excluded), "kl_scale": self.kl_scale}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Add the corrections of a saved `state`."""
        self.excluded |= set(state["excluded"])
        self.kl_scale = max(self.kl_scale, state["kl_scale"])


def without(rollouts: Rollouts, excluded: set[int]) -> Rollouts:
    """The same shards, with a summary without the excluded sequences."""
    if not excluded:
        return rollouts
    keep = ~np.isin(rollouts.summary.ids, sorted(excluded))
    names = RolloutSummary.__dataclass_fields__
    columns = [getattr(rollouts.summary, name)[keep] for name in names]
    return Rollouts(rollouts.shards, RolloutSummary(*columns), rollouts.held)


def keep_culprits(
    session: Session, what: str, ids: tuple[int, ...], parts: Sequence[Rollouts]
) -> None:
    """Append the source of a NaN to samples/non_finite.jsonl, with texts if they are known."""
    line: dict[str, Any] = {
        "stage": session.position.stage,
        "step": session.position.step,
        "what": what,
        "ids": list(ids),
    }
    if parts and ids:
        batch: RolloutBatch = session.fleet.rollout.fetch(joined(parts)).result()
        rows = [n for n, i in enumerate(batch.ids.tolist()) if i in ids]
        line["sequences"] = [
            {
                "id": int(batch.ids[n]),
                "prompt": session.source.detokenize(batch.prompt(n)),
                "response": session.source.detokenize(batch.response(n)),
                "smallest_logprob": str(batch.logprobs.row(n).min()),
            }
            for n in rows
        ]
    append_lines(session.folder.non_finite, [line], "a sample")

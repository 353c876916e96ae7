"""What a run does differently after numbers went wrong, so that going back leads elsewhere.

A replay is exact: from the same checkpoint the same NaN comes again. So a run that goes back leaves
out the sequences it came from, or raises the KL coefficient, and keeps that in its checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.roles.interfaces import Rollouts, joined
from orchestrator.run_files.folder import append_lines
from workers.errors import NonFiniteError
from workers.records.generation import RolloutBatch, RolloutSummary

if TYPE_CHECKING:
    from orchestrator.session.session import Session

REASON = "not finite"  # of the drop, in the ledger
_KL_FACTOR = 2.0


@dataclass(slots=True)
class Amends:
    """Grows only, also when the run goes back."""

    excluded: set[int] = field(default_factory=set)  # sequences that are not trained on
    kl_scale: float = 1.0  # of the KL coefficient
    places: set[tuple[str, int]] = field(default_factory=set)  # stages and steps gone back from
    made: int = 0

    def for_numbers(self, error: NonFiniteError, stage: str, step: int) -> bool:
        """Leave out the culprits; False: a replay would end the same."""
        new = {*error.ids} - self.excluded
        if not new and (stage, step) in self.places:
            return False
        self.places.add((stage, step))
        if stage.startswith("ppo"):
            self.excluded |= new
        self.made += 1
        return True

    def for_kl(self) -> None:
        """Hold the policy closer from here on."""
        self.kl_scale *= _KL_FACTOR
        self.made += 1

    def state(self) -> dict[str, Any]:
        """As plain values."""
        return {"excluded": sorted(self.excluded), "kl_scale": self.kl_scale}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier process had amended."""
        self.excluded |= set(state["excluded"])
        self.kl_scale = max(self.kl_scale, state["kl_scale"])


def without(rollouts: Rollouts, excluded: set[int]) -> Rollouts:
    """The same shards, with a summary that names none of the excluded sequences."""
    if not excluded:
        return rollouts
    keep = ~np.isin(rollouts.summary.ids, sorted(excluded))
    names = RolloutSummary.__dataclass_fields__
    columns = [getattr(rollouts.summary, name)[keep] for name in names]
    return Rollouts(rollouts.shards, RolloutSummary(*columns))


def keep_culprits(
    session: Session, what: str, ids: tuple[int, ...], parts: Sequence[Rollouts]
) -> None:
    """Add to samples/non_finite.jsonl where a NaN came from, with texts where they are known."""
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

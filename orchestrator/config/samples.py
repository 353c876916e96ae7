"""Settings of the sampled texts that a run keeps."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.config.ranges import at_least


@dataclass(slots=True, kw_only=True)
class SamplesConfig:
    """Which texts of stages that sample are written to samples/rollouts.jsonl."""

    per_iteration: int = at_least(0, 8)
    """Texts of an iteration that are saved: dropped ones take up to half, trained ones the rest."""
    all: bool = False
    """Save the texts of all sequences; per_iteration has no effect."""

    @property
    def none(self) -> bool:
        """Whether no text is saved, so that none needs to be fetched."""
        return not self.all and self.per_iteration == 0

    def chosen(self, trained: list[int], dropped: list[int]) -> list[int]:
        """Those that are saved, in ascending order; of both kinds the first."""
        if self.all:
            return sorted({*trained, *dropped})
        most = self.per_iteration
        of_dropped = dropped[: max(most // 2, most - len(trained))]
        return sorted({*trained[: most - len(of_dropped)], *of_dropped})

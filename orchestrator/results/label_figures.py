"""What the stage label sampled, and what a labeler said of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.results.reward_model_figures import PairAccuracy
from orchestrator.run_files.damage import require_list, whole


@dataclass(frozen=True, slots=True)
class AILabelFigures:
    """What a model said that was asked about pairs in both orders."""

    questions: int  # different ones
    unanswered: int  # of them, those without an answer
    cycles: int  # prompts whose preferences contradict each other
    bias_pairs: int  # pairs that were answered in both orders
    # share of the questions that the position decides, with its 95 % interval over prompts:
    # above 0 the first answer is favoured; None = fewer than two prompts
    bias: float | None
    bias_low: float | None
    bias_high: float | None


@dataclass(frozen=True, slots=True)
class LabelFigures:
    """One run of the stage label; answers = ranked + left out."""

    labeler: str
    models: tuple[str, ...]  # who answered
    answers: int  # sampled
    ranked: int  # of them, those in rankings
    left_out: dict[str, int] = field(default_factory=dict)  # the others, by reason
    rankings: int = 0  # to train on
    heldout: int = 0  # rankings held out
    pairs: int = 0  # ordered pairs of the training rankings
    # held-out pairs that the reward model so far orders right; None: it did not score them
    before: PairAccuracy | None = None
    judging: AILabelFigures | None = None  # None: no model was asked about pairs

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        found = {**asdict(self), "models": list(self.models)}
        return {k: v for k, v in found.items() if k != "judging" or v is not None}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LabelFigures:
        """The inverse of `to_json`.

        Raises:
            ValueError, TypeError, KeyError: it is no such object.
        """
        models, before = tuple(require_list(data["models"])), data["before"]
        found = whole(PairAccuracy, before) if before is not None else None
        said = data.get("judging")
        judging = whole(AILabelFigures, said) if said is not None else None
        return whole(cls, data | {"models": models, "before": found, "judging": judging})

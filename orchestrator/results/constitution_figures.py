"""What the stage constitution sampled, and what became of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.run_files.damage import whole


@dataclass(frozen=True, slots=True)
class Share:
    """A share of answers with its 95 % interval."""

    rate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class ConstitutionFigures:
    """One run of the stage constitution; answers = revised + left out."""

    critic: str
    answers: int  # sampled, one per prompt
    revised: int  # of them, those with every revision
    left_out: dict[str, int] = field(default_factory=dict)  # the others, by reason
    demonstrations: int = 0  # to train on
    heldout: int = 0  # demonstrations held out
    changed: int = 0  # revised answers whose last revision is another text
    # rude answers, before and after the last revision; None: the data cannot tell
    rude_before: Share | None = None
    rude_after: Share | None = None

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ConstitutionFigures:
        """The inverse of `to_json`.

        Raises:
            ValueError, TypeError, KeyError: it is no such object.
        """
        shares = {name: data[name] for name in ("rude_before", "rude_after")}
        read = {n: None if each is None else whole(Share, each) for n, each in shares.items()}
        return whole(cls, data | read)

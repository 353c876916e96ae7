"""What became of the rows of a data set: read = kept in training + held out + dropped (reason)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

_MOST_REASONS = 50


@dataclass(slots=True)
class SetAccount:
    """Counts of one data set. A pretraining document of several windows is as many rows."""

    name: str
    kind: str
    path: str
    weight: float
    read: int = 0
    train: int = 0  # kept for training
    heldout: int = 0  # kept for validation
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    cut: int = 0  # completions that lost their end to the token limit
    tokens: int = 0  # of the rows that were kept
    train_pairs: int = 0  # comparisons: pairs of different rank
    heldout_pairs: int = 0
    unread: list[str] = field(default_factory=list)  # columns that say nothing to the run
    labels: str = ""  # how the numbers of `columns.better` were read
    tied_pairs: int = 0  # comparisons: pairs of equal rank among the rows that were kept

    def drop(self, reason: str, count: int) -> None:
        """Count rows that were left out; of reasons in other people's words the first are kept."""
        reason = bounded_reason(reason, self.dropped)
        self.dropped[reason] = self.dropped.get(reason, 0) + count


def bounded_reason(reason: str, known: Collection[str]) -> str:
    """The reason, or one for all others where there are very many of them."""
    return reason if reason in known or len(known) < _MOST_REASONS else "other reasons"

"""Row counts of a data set: read = train + held out + dropped by reason."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

_MOST_REASONS = 50
_KEYS = {"prompt over ": "data.files.max_prompt_tokens"}  # how a reason begins -> what sets it


def with_key(reason: str) -> str:
    """A reason for which rows are dropped, with the key that decides it, for messages."""
    keys = [key for begins, key in _KEYS.items() if reason.startswith(begins)]
    return f"{reason} ({keys[0]})" if keys else reason


@dataclass(slots=True)
class SetAccount:
    """Counts of one data set. Each window of a pretraining document counts as one row."""

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
    unread: list[str] = field(default_factory=list)  # columns that the run did not read
    labels: str = ""  # how the labels of `columns.better` were interpreted
    tied_pairs: int = 0  # comparisons: pairs of equal rank among the rows that were kept

    def drop(self, reason: str, count: int) -> None:
        """Count dropped rows; reasons beyond the first `_MOST_REASONS` are counted together."""
        reason = bounded_reason(reason, self.dropped)
        self.dropped[reason] = self.dropped.get(reason, 0) + count


def bounded_reason(reason: str, known: Collection[str]) -> str:
    """The reason, or "other reasons" once `known` holds the maximum number of reasons."""
    return reason if reason in known or len(known) < _MOST_REASONS else "other reasons"

"""Ledger of every sequence: generated = trained + dropped + open, or the run stops.

Open sequences belong to batches that were requested ahead of their iteration; none is open at the
end.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import cast

from orchestrator.results.findings import Findings
from orchestrator.results.summary import LedgerTotals
from workers.errors import LedgerError
from workers.records.arrays import IntArray


class Cause(Enum):
    """Why sequences are dropped, in one word for metrics; a reason may quote any error."""

    no_reward = "no_reward"
    incomplete_group = "incomplete_group"
    surplus = "surplus"
    not_finite = "not_finite"
    not_chosen = "not_chosen"
    environment = "environment"


@dataclass(frozen=True, slots=True)
class LedgerSummary:
    """Counts of sequences by outcome.

    Over all steps `generated == trained + sum(dropped.values()) + open`; a single step may also
    settle sequences that earlier steps left open.
    """

    generated: int
    trained: int
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    open: int = 0  # requested ahead of their iteration, at the time of the summary
    causes: dict[Cause, int] = field(default_factory=dict)  # of the drops of a single step
    # sequence -> why it was dropped, of a single step; names, not counts
    reasons: dict[int, str] = field(default_factory=dict, compare=False)

    @property
    def dropped_total(self) -> int:
        """Dropped for any reason."""
        return sum(self.dropped.values())


class Ledger:
    """Follows each sequence id from generation to exactly one outcome.

    A step calls `generated`, then `trained` and `dropped`, then `check`. Training on a sequence for
    several epochs counts as `trained` once. A sequence counts as generated once it is requested.
    """

    def __init__(self) -> None:
        self._seen = _Ids()
        self._open: set[int] = set()  # generated, not yet trained or dropped
        self._total: _Counts = _Counts()
        self._step: _Counts = _Counts()

    def generated(self, ids: IntArray | Iterable[int]) -> None:
        """Enter new sequences.

        Raises:
            LedgerError: an id was generated before.
        """
        for i in map(int, ids):
            if i in self._seen:
                raise LedgerError(f"sequence {i} was generated twice", where="ledger", fix=_FIX)
            self._seen.add(i)
            self._open.add(i)
            self._step.generated += 1

    def trained(self, ids: IntArray | Iterable[int]) -> None:
        """Settle sequences that were trained on.

        Raises:
            LedgerError: an id is unknown, or was settled before.
        """
        for i in map(int, ids):
            self._settle(i, "trained")
            self._step.trained += 1

    def dropped(
        self, ids: IntArray | Iterable[int], reason: str, cause: Cause = Cause.no_reward
    ) -> None:
        """Settle sequences that will not be trained on, with the reason and its kind.

        Raises:
            LedgerError: an id is unknown, or was settled before.
        """
        assert reason, "a drop needs a reason"
        for i in map(int, ids):
            self._settle(i, f"dropped ({reason})")
            self._step.dropped[reason] += 1
            self._step.reasons[i] = reason
            self._step.causes[cause] += 1

    def _settle(self, i: int, fate: str) -> None:
        if i not in self._open:
            story = "settled before" if i in self._seen else "never generated"
            raise LedgerError(
                f"sequence {i} cannot be {fate}: it was {story}", where="ledger", fix=_FIX
            )
        self._open.remove(i)

    def check(self, step: int, ahead: IntArray | Iterable[int] = ()) -> LedgerSummary:
        """Close a step; return its counts.

        Args:
            step: For the error.
            ahead: Sequences of later iterations: exactly these must be open.

        Raises:
            LedgerError: some other sequence was neither trained nor dropped, or one of these is
                not open any more.
        """
        waiting = set(map(int, ahead))
        for ids, story in (
            (self._open - waiting, "were neither trained nor dropped"),
            (waiting - self._open, "wait for their turn but are not open"),
        ):
            if ids:
                names = ", ".join(str(i) for i in sorted(ids)[:8])
                raise LedgerError(
                    f"{len(ids)} sequences {story}: {names}",
                    where=f"ledger, step {step}",
                    fix=_FIX,
                )
        closed = self._step.summary(len(self._open))
        self._total.add(self._step)
        self._step = _Counts()
        return closed

    def summary(self) -> LedgerSummary:
        """Counts of all closed steps."""
        return self._total.summary(len(self._open))

    def state_dict(self) -> dict[str, object]:
        """State for a resumed run, as plain JSON types; ids are stored as [first, last] ranges.

        Call only between steps, after `check`.
        """
        total = self._total
        return {
            "generated": total.generated,
            "trained": total.trained,
            "dropped": dict(total.dropped),
            "ranges": self._seen.ranges(),
            "open": ranges(self._open),
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from a saved state."""
        dropped = cast("dict[str, int]", state["dropped"])
        self._seen = _Ids(cast("list[list[int]]", state["ranges"]))
        self._open = set(from_ranges(cast("list[list[int]]", state.get("open", []))))
        self._step = _Counts()
        self._total = _Counts(
            int(str(state["generated"])), int(str(state["trained"])), Counter(dropped)
        )


def enter(findings: Findings, counts: LedgerSummary) -> None:
    """Add the counts of a step to the results of the run."""
    totals = findings.ledger
    findings.ledger = LedgerTotals(
        totals.generated + counts.generated,
        totals.trained + counts.trained,
        totals.dropped + counts.dropped_total,
    )
    findings.drops = dict(Counter(findings.drops) + Counter(counts.dropped))


_FIX = "this is a defect of the loop, not of the configuration: please report it"


class _Ids:
    """A set of ids stored as ranges; it stays small because ids are assigned consecutively."""

    def __init__(self, ranges: Sequence[Sequence[int]] = ()) -> None:
        self._first = [int(first) for first, _ in ranges]
        self._last = [int(last) for _, last in ranges]  # inclusive

    def __contains__(self, i: int) -> bool:
        at = bisect_right(self._first, i) - 1
        return at >= 0 and i <= self._last[at]

    def add(self, i: int) -> None:
        """Add an id that is not in the set, and merge it with adjacent ranges."""
        at = bisect_right(self._first, i)  # index of the next range
        after = at < len(self._first) and self._first[at] == i + 1
        if at and self._last[at - 1] == i - 1:
            self._last[at - 1] = self._last[at] if after else i
            if after:
                del self._first[at], self._last[at]
        elif after:
            self._first[at] = i
        else:
            self._first.insert(at, i)
            self._last.insert(at, i)

    def ranges(self) -> list[list[int]]:
        """First and last id of each range, in order."""
        return [list(each) for each in zip(self._first, self._last, strict=True)]


@dataclass(slots=True)
class _Counts:
    generated: int = 0
    trained: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    causes: Counter[Cause] = field(default_factory=Counter)
    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, other: _Counts) -> None:
        self.generated += other.generated
        self.trained += other.trained
        self.dropped.update(other.dropped)

    def summary(self, still_open: int) -> LedgerSummary:
        dropped, causes = dict(self.dropped), dict(self.causes)
        return LedgerSummary(
            self.generated, self.trained, dropped, still_open, causes, dict(self.reasons)
        )


def from_ranges(ranges: Iterable[Sequence[int]]) -> list[int]:
    """The ids of inclusive ranges, in order."""
    return [i for first, last in ranges for i in range(int(first), int(last) + 1)]


def ranges(ids: Iterable[int]) -> list[list[int]]:
    """Ids as inclusive ranges, in order."""
    result: list[list[int]] = []
    for i in sorted(ids):
        if result and result[-1][1] == i - 1:
            result[-1][1] = i
        else:
            result.append([i, i])
    return result

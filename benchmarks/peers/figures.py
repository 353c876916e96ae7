"""What the turns of the sides say: per step, and ours over each peer's."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from benchmarks.peers.marks import Mark
from benchmarks.peers.shapes import Shape
from benchmarks.peers.watch import Sample
from workers.errors import DataError

OURS = "ours"


@dataclass(frozen=True, slots=True)
class Turn:
    """One launch of a side."""

    step_seconds: tuple[float, ...]  # of each counted step
    cpu_seconds: float  # per step, of all processes
    peak_gib: float  # proportional set size of all processes, from launch to end
    first_step_after: float  # seconds from launch to the end of the first step


def turn_of(
    marks: Sequence[Mark], samples: Sequence[Sample], peak_bytes: int, begun: float, warm_up: int
) -> Turn:
    """Figures of a launch.

    Args:
        marks: Ends of all steps.
        samples: Looks at the processor time, from the launch to its end.
        peak_bytes: Most memory.
        begun: Second of the launch.
        warm_up: First steps that do not count; at least 1, for a step begins where one ends.
    """
    counted = [mark.at for mark in marks[warm_up - 1 :]]
    used = cpu_at(samples, counted[-1]) - cpu_at(samples, counted[0])
    return Turn(
        step_seconds=tuple(end - begin for begin, end in pairwise(counted)),
        cpu_seconds=used / (len(counted) - 1),
        peak_gib=peak_bytes / 2**30,
        first_step_after=marks[0].at - begun,
    )


def cpu_at(samples: Sequence[Sample], at: float) -> float:
    """Processor seconds used until `at`, on the line between the looks before and after it."""
    for before, after in pairwise(samples):
        if before.at <= at <= after.at:
            share = (at - before.at) / (after.at - before.at)
            return before.cpu + share * (after.cpu - before.cpu)
    raise ValueError(f"no look at the processor time around second {at}")


def check_work(side: str, shape: Shape, steps: int, marks: Sequence[Mark]) -> None:
    """Check that a side did exactly the shape's work in every step.

    Raises:
        DataError: It did other work, so its seconds say nothing about the others'.
    """
    expected = work_of(shape)
    if len(marks) != steps:
        raise DataError(f"{side} made {len(marks)} steps of {steps}", where="benchmarks.peers")
    for number, mark in enumerate(marks, start=1):
        did = {name: value for name, value in asdict(mark).items() if name != "at"}
        if did != expected:
            raise DataError(
                f"{side} did other work in step {number}: {did} instead of {expected}",
                where="benchmarks.peers",
                fix="compare versions of the peer with the one that its script was written for",
            )


def work_of(shape: Shape) -> dict[str, int]:
    """What every side must do per step."""
    return {
        "sequences": shape.sequences,
        "prompt_tokens": shape.prompt_tokens,
        "response_tokens": shape.response_tokens,
        "optimizer_steps": shape.epochs * shape.sequences // shape.minibatch,
    }


def summary(turns: Sequence[Turn], sequences: int) -> dict[str, float]:
    """Medians of a side: of all its steps for seconds, of its turns for the rest."""
    seconds = statistics.median(s for turn in turns for s in turn.step_seconds)
    return {
        "step_seconds": seconds,
        "fastest_step_seconds": min(s for turn in turns for s in turn.step_seconds),
        "cpu_seconds": statistics.median(turn.cpu_seconds for turn in turns),
        "peak_gib": statistics.median(turn.peak_gib for turn in turns),
        "sequences_per_second": sequences / seconds,
        "first_step_after": statistics.median(turn.first_step_after for turn in turns),
    }


def ratios(turns: Mapping[str, Sequence[Turn]]) -> dict[str, dict[str, float]]:
    """Ours over each peer's: medians of the ratios of turns that ran after one another."""

    def over(peer: str, figure: str) -> float:
        return statistics.median(
            _figure(ours, figure) / _figure(theirs, figure)
            for ours, theirs in zip(turns[OURS], turns[peer], strict=True)
        )

    figures = ("step_seconds", "cpu_seconds", "peak_gib", "first_step_after")
    return {p: {f: over(p, f) for f in figures} for p in turns if p != OURS}


def _figure(turn: Turn, name: str) -> float:
    found: float | tuple[float, ...] = getattr(turn, name)
    return statistics.median(found) if isinstance(found, tuple) else found

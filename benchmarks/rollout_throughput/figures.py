"""Figures of the turns: tokens per second, ratios, latencies, and where the time went."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

PERCENTS = (50, 95)


@dataclass(frozen=True, slots=True)
class Split:
    """The seconds of a turn of ours: engine, Ray and driver add up to the turn."""

    engine: float  # the slowest engine's call, in its process: its steps, and packing of records
    ray: float  # requests and records on their way, scheduled and serialized
    driver: float  # this process: dealing out requests, joining answers


@dataclass(frozen=True, slots=True)
class Turn:
    """One generation of all requests by one side."""

    prompt_tokens: int  # of all sequences: K times those of a prompt, cached or not
    tokens: int  # of all responses
    seconds: float
    cpu_seconds: float | None = None  # of the engines' processes; None: they are on other machines
    split: Split | None = None

    @property
    def speed(self) -> float:
        """Response tokens per second."""
        return self.tokens / self.seconds

    @property
    def prompt_speed(self) -> float:
        """Prompt tokens per second, over the whole turn."""
        return self.prompt_tokens / self.seconds


def split(seconds: float, engines: Sequence[float], driver: float) -> Split:
    """Divide the seconds of a turn.

    Args:
        seconds: The turn by the driver's clock.
        engines: Seconds in calls of each engine, in its process.
        driver: Processor seconds of the driver's thread; those at the same time as engines' do not
            lengthen the turn, and are left out.
    """
    engine = min(seconds, max(engines))
    outside = seconds - engine
    own = min(outside, driver)
    return Split(engine, outside - own, own)


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: the smallest value that at least `percent` of the values do not exceed."""
    ranked = sorted(values)
    return ranked[max(1, math.ceil(percent / 100 * len(ranked))) - 1]


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p95 of the sequences' latencies, seconds."""
    return {f"p{percent}": percentile(seconds, percent) for percent in PERCENTS}


def ratios(ours: Sequence[Turn], other: Sequence[Turn]) -> list[float]:
    """Ours over the other side's speed, turn by turn: neighbours meet the same machine."""
    return [a.speed / b.speed for a, b in zip(ours, other, strict=True)]


def cpu_ratio(ours: Sequence[Turn], other: Sequence[Turn]) -> float | None:
    """Median ratio of tokens per processor second: what others do on the machine weighs less."""
    found = [
        (a.tokens / a.cpu_seconds) / (b.tokens / b.cpu_seconds)
        for a, b in zip(ours, other, strict=True)
        if a.cpu_seconds and b.cpu_seconds
    ]
    return statistics.median(found) if found else None


def shares(turns: Sequence[Turn]) -> dict[str, float]:
    """Engine, Ray and driver as fractions of all turns' time."""
    whole = math.fsum(turn.seconds for turn in turns)
    parts = [turn.split for turn in turns if turn.split is not None]
    return {
        name: math.fsum(getattr(part, name) for part in parts) / whole
        for name in ("engine", "ray", "driver")
    }


def point(
    concurrency: int, turns: dict[str, list[Turn]], latencies: dict[str, list[float]]
) -> dict[str, Any]:
    """Everything found at one concurrency, as JSON has it.

    Args:
        concurrency: Sequences at once over all engines.
        turns: Of each side, turn by turn; the other sides' are beside those of "ours".
        latencies: Seconds from the request to each sequence, over the turns that time them.
    """
    sides = {
        name: {
            "tokens_per_second": statistics.median(turn.speed for turn in found),
            "prompt_tokens_per_second": statistics.median(turn.prompt_speed for turn in found),
            "latency_seconds": latency(latencies[name]) if latencies.get(name) else None,
            "turns": [asdict(turn) for turn in found],
        }
        for name, found in turns.items()
    }
    ours = turns["ours"]
    against = {
        name: {
            "ratios": ratios(ours, found),
            "median": statistics.median(ratios(ours, found)),
            "median_by_cpu_seconds": cpu_ratio(ours, found),
            "same_tokens": [a.tokens == b.tokens for a, b in zip(ours, found, strict=True)],
        }
        for name, found in turns.items()
        if name != "ours"
    }
    return {
        "concurrency": concurrency,
        "sides": sides,
        "ours_over": against,
        "time_shares": shares(ours),
    }

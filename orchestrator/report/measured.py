"""The metrics of a run in memory, by stage and name, as they come."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.telemetry.metrics import MetricRecord


@dataclass(slots=True)
class Series:
    """One metric of one stage, in recorded order."""

    stage: str
    name: str
    unit: str
    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))  # in `unit`; may be NaN


class Measured:
    """All metrics that were read so far: 16 bytes per value."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], Series] = {}

    def add(self, records: Iterable[MetricRecord]) -> None:
        """Add records in their order in the file."""
        for record in records:
            key = (record.stage, record.name)
            found = self._series.get(key)
            if found is None:
                # a new dictionary: pages go over the old one in other threads
                found = Series(record.stage, record.name, record.unit)
                self._series = {**self._series, key: found}
            found.steps.append(record.step)
            found.values.append(record.value)

    def clear(self) -> None:
        """Forget everything."""
        self._series = {}

    def series(self, stage: str, name: str) -> Series | None:
        """One metric of one stage."""
        return self._series.get((stage, name))

    def of_stage(self, stage: str) -> list[Series]:
        """All metrics of a stage, in the order in which they first came."""
        return [each for each in self._series.values() if each.stage == stage]

    def names(self) -> list[str]:
        """Names of all metrics, in the order in which they first came."""
        return list(dict.fromkeys(name for _, name in self._series))

    def stages(self) -> list[str]:
        """Stages that recorded something, in order."""
        return list(dict.fromkeys(stage for stage, _ in self._series))

    def last(self, stage: str, name: str) -> float | None:
        """The newest value of a metric."""
        found = self._series.get((stage, name))
        return found.values[-1] if found and found.values else None

    def last_step(self, stage: str) -> int | None:
        """The newest step of a stage."""
        steps = [each.steps[-1] for each in self.of_stage(stage) if each.steps]
        return max(steps, default=None)

    def total(self, stage: str, name: str) -> float:
        """Sum of a metric over all steps."""
        found = self._series.get((stage, name))
        return sum(found.values) if found else 0.0

    def count(self) -> int:
        """Values of all metrics."""
        return sum(len(each.values) for each in self._series.values())

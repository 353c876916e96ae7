"""What stage runs cost: their time and memory, and where the time of a PPO step goes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from orchestrator.report.tables import MISSING
from orchestrator.results.summary import Summary, model_label
from orchestrator.telemetry.live import duration
from orchestrator.telemetry.metrics import MetricRecord

TIME_HEADS = ("role", "busy, s", "transfer, s", "waiting, s", "idle share")
COST_HEADS = ("stage", "time", "KL at the end", "host memory", "roles")

_TIMES = ("busy_seconds", "transfer_seconds", "waiting_seconds")
_KL = "ppo/kl_sequence"
_LAST = 4  # iterations whose mean is the KL at the end: the estimate of one is noisy
_GIB = 2**30


def cost_rows(summary: Summary, records: Iterable[MetricRecord]) -> list[list[str]]:
    """A row per stage run, by COST_HEADS: time, KL to the reference, memory of its workers."""
    kls = kl_at_end(records)
    return [
        [
            model_label(stage),
            duration(seconds),
            f"{kls[stage]:.2f}" if stage in kls else MISSING,
            *_memory(summary.memory.get(stage, {})),
        ]
        for stage, seconds in summary.timing.stages.items()
    ]


def kl_at_end(records: Iterable[MetricRecord]) -> dict[str, float]:
    """By stage run, the KL to the reference of its last iterations: mean, nats per sequence."""
    kls: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record.name == _KL:
            kls[record.stage].append(record.value)
    return {stage: statistics.fmean(values[-_LAST:]) for stage, values in kls.items()}


def _memory(roles: Mapping[str, int]) -> tuple[str, str]:
    """Sum of the peaks, and the peak of each role."""
    if not roles:
        return MISSING, MISSING
    each = ", ".join(f"{role} {peak / _GIB:.2f}" for role, peak in roles.items())
    return f"{sum(roles.values()) / _GIB:.2f} GiB", each


def time_rows(records: Iterable[MetricRecord]) -> list[list[str]]:
    """Seconds of a PPO step by role: role, busy, transfer, waiting, idle share."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        family, _, rest = record.name.partition("/")
        kind, _, role = rest.partition("/")
        if family == "ppo" and kind in _TIMES and record.step > 1:
            found[role][kind].append(record.value)
    return [[role, *_time_cells(times)] for role, times in found.items()]


def _time_cells(times: Mapping[str, Sequence[float]]) -> list[str]:
    if any(not times[kind] for kind in _TIMES):  # lines of the metrics are lost
        return [
            f"{statistics.fmean(times[kind]):.3f}" if times[kind] else MISSING for kind in _TIMES
        ] + [MISSING]
    seconds = [statistics.fmean(times[kind]) for kind in _TIMES]
    share = seconds[2] / whole if (whole := sum(seconds)) else 0.0
    return [*(f"{s:.3f}" for s in seconds), f"{share:.0%}"]

"""Recorder of metrics and time. metrics.jsonl is written immediately; sinks get copies."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.config.run import LoggerConfig, StageName
from orchestrator.run_files.folder import RunFolder
from orchestrator.telemetry.exported import Present
from orchestrator.telemetry.metrics import (
    METRICS,
    PPO_PHASES,
    Metric,
    MetricRecord,
    UnknownMetricError,
    comparable,
    read_metrics,
    series,
)
from orchestrator.telemetry.role_time import Account
from orchestrator.telemetry.sinks import BackgroundSink, Sink, Warn, configured_sinks
from orchestrator.telemetry.trace import Trace
from workers.errors import CheckpointError
from workers.process.disk import writing

__all__ = [
    "METRICS",
    "PPO_PHASES",
    "Metric",
    "MetricRecord",
    "Telemetry",
    "UnknownMetricError",
    "comparable",
    "read_metrics",
    "series",
]

# Phases that are calls to one role: role and verb.
CALLS = {
    "reward": ("reward", "score"),
    "logprobs": ("policy", "logprobs"),
    "reference": ("reference", "logprobs"),
    "values": ("critic", "values"),
    "experience": ("policy", "build_experience"),
    "policy_update": ("policy", "update"),
    "critic_update": ("critic", "update"),
}
_STAGES = frozenset(stage.value for stage in StageName)


class Telemetry:
    """Metrics, time spans and sinks of one run.

    Spans may overlap and may run in several threads; only the driver's thread may call `record`.
    """

    def __init__(
        self,
        folder: RunFolder,
        logger: LoggerConfig,
        config: Mapping[str, object],
        *,
        warn: Warn | None = None,
        sinks: Sequence[Sink] | None = None,
        run_id: str = "",
        stages: Iterable[str] = (),
    ) -> None:
        """Open metrics.jsonl and start the sinks.

        Args:
            folder: A created run folder.
            logger: Which sinks to start.
            config: The resolved configuration as plain values, shown by sinks.
            warn: Called once per dropped sink or trace; logs by default.
            sinks: Replaces the configured sinks.
            run_id: Id of a resumed run in external services; "" = a new one.
            stages: Names of stage runs that are no stages.
        """
        self._stages = _STAGES | {*stages}
        self.run_id = run_id or uuid.uuid4().hex[:12]
        #: The state of the run at any moment, for sinks; other threads call it.
        self.present: Callable[[], Present] = Present
        warn = warn or logging.getLogger(__name__).warning
        if sinks is None:
            sinks = configured_sinks(folder, logger, dict(config), self.run_id, self._present)
        self._file = folder.metrics
        with writing(self._file, "a metric"):
            self._metrics = self._file.open("a", encoding="utf-8")
        self._trace = Trace(folder, warn)
        self.account = Account()
        self._lock = threading.Lock()
        self._stage_seconds: dict[str, float] = defaultdict(float)
        self._stage_memory: dict[str, dict[str, int]] = defaultdict(dict)  # role -> most bytes
        self._running: dict[str, float] = {}  # stage -> start time
        self._totals: dict[tuple[str, str], float] = defaultdict(float)
        self._of_step: dict[tuple[str, int], dict[str, float]] = {}
        self._last: tuple[str, int, dict[str, float]] = ("", 0, {})  # last recorded step
        #: Sentences for the user.
        self.notes = [sink.note for sink in sinks if sink.note]
        self._sinks = [BackgroundSink(sink, logger.sink_seconds, warn) for sink in sinks]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def record(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of one step: to the file before returning, to the sinks in background.

        Raises:
            UnknownMetricError: a name is not in METRICS; nothing is written then.
            CheckpointError: the disk is full or read-only, or the run folder was deleted.
        """
        self._check_stage(stage)
        records = [MetricRecord.make(stage, step, name, value) for name, value in values.items()]
        if not records:
            return
        self._require_there()
        with writing(self._file, "a metric"):
            self._metrics.write("".join(record.to_line() for record in records))
            self._metrics.flush()
        self._last = (stage, step, self.values(stage, step) | dict(values))
        self._tell_calls()
        for sink in self._sinks:
            sink.write(records)

    def _present(self) -> Present:
        return self.present()

    def _require_there(self) -> None:
        """Raise if metrics.jsonl was deleted or replaced: writing to it would give no error."""
        held = os.fstat(self._metrics.fileno())
        try:
            if os.path.samestat(held, self._file.stat()):
                return
        except OSError:
            pass
        raise CheckpointError(
            "the file of the metrics has vanished from the run folder, or was replaced",
            where=str(self._file),
            fix="put the folder back and resume with resume=auto from its last checkpoint; nothing "
            "was written since it disappeared",
        )

    def values(self, stage: str, step: int) -> dict[str, float]:
        """The recorded values of a step if it is the last recorded one, else {}."""
        return dict(self._last[2]) if self._last[:2] == (stage, step) else {}

    def begin(self, stage: str, step: int, phase: str) -> Callable[[], None]:
        """Start timing one phase of one step; call the returned function to end it.

        Repeated phases of a step are added up; a phase that never ends is not recorded.
        """
        self._check_stage(stage)
        begin = time.monotonic()
        self.account.open()

        def end() -> None:
            seconds = time.monotonic() - begin
            with self._lock:
                self._totals[stage, phase] += seconds
                of_step = self._of_step.setdefault((stage, step), {})
                of_step[phase] = of_step.get(phase, 0.0) + seconds
                self._trace.phase(stage, step, phase, begin, seconds)

        return end

    @contextmanager
    def span(self, stage: str, step: int, phase: str) -> Iterator[None]:
        """Time one phase of one step."""
        end = self.begin(stage, step, phase)
        try:
            yield
        finally:
            end()

    @contextmanager
    def stage_span(self, stage: str) -> Iterator[None]:
        """Time a whole stage."""
        self._check_stage(stage)
        begin = self._running[stage] = time.monotonic()
        self.account.peaks()  # those of the stage before are not this one's
        try:
            yield
        finally:
            seconds = time.monotonic() - begin
            with self._lock:
                del self._running[stage]
                self.account.end()
                self._stage_seconds[stage] += seconds
                self._keep_peaks(stage, self.account.peaks())
                self._trace.phase(stage, None, stage, begin, seconds)

    def record_phases(self, stage: str, step: int) -> dict[str, float]:
        """Record the time metrics of a finished PPO step; returns the seconds of its phases.

        For a phase that is a call to one role, `ppo/seconds/PHASE` is the time that the role took,
        since the driver waits for several roles at once; for other phases it is the driver's span.
        Busy, transfer and waiting seconds and the idle share are per role, since the previous step.
        """
        with self._lock:
            phases = self._of_step.pop((stage, step), {})
            for phase, (role, verb) in CALLS.items():
                own = self.account.at_work(role, verb) if phase in phases else None
                if own is not None:
                    self._totals[stage, phase] += own - phases[phase]
                    phases[phase] = own
        values = {f"ppo/seconds/{name}": value for name, value in phases.items()}
        for role, spent in self.account.close().items():
            values |= {
                f"ppo/busy_seconds/{role}": spent.busy,
                f"ppo/transfer_seconds/{role}": spent.transfer,
                f"ppo/waiting_seconds/{role}": spent.waiting,
                f"ppo/idle_share/{role}": spent.idle_share,
            }
        self.record(stage, step, values)
        return phases

    def stage_seconds(self) -> dict[str, float]:
        """Seconds of each finished stage."""
        with self._lock:
            return dict(self._stage_seconds)

    def stage_memory(self) -> dict[str, dict[str, int]]:
        """Most resident bytes of each role that worked in a stage, by stage, sum over workers."""
        with self._lock:
            return {stage: dict(roles) for stage, roles in self._stage_memory.items()}

    def _keep_peaks(self, stage: str, peaks: Mapping[str, int]) -> None:
        kept = self._stage_memory[stage]
        for role, peak in peaks.items():
            kept[role] = max(kept.get(role, 0), peak)

    def phase_seconds(self, *stages: str) -> dict[str, float]:
        """Seconds of each phase, summed over steps and over the given stages (all by default)."""
        sums: dict[str, float] = defaultdict(float)
        with self._lock:
            for (stage, phase), seconds in self._totals.items():
                if not stages or stage in stages:
                    sums[phase] += seconds
        return dict(sums)

    def sync(self) -> dict[str, int]:
        """Flush metrics.jsonl to disk; returns its size in bytes by its name."""
        with writing(self._file, "a metric"):
            os.fsync(self._metrics.fileno())
        return {Path(self._metrics.name).name: os.fstat(self._metrics.fileno()).st_size}

    def state(self) -> dict[str, object]:
        """Seconds and memory so far, with those of stages in progress, for a checkpoint."""
        now = time.monotonic()
        with self._lock:
            seconds = dict(self._stage_seconds)
            for stage, begin in self._running.items():
                seconds[stage] = seconds.get(stage, 0.0) + now - begin
                self._keep_peaks(stage, self.account.peaks())
            phases = [[stage, phase, s] for (stage, phase), s in self._totals.items()]
            memory = {stage: dict(roles) for stage, roles in self._stage_memory.items()}
        return {"stages": seconds, "phases": phases, "memory": memory, "run_id": self.run_id}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Add the seconds of earlier processes of this run, and keep the larger memory."""
        with self._lock:
            for stage, roles in state.get("memory", {}).items():
                self._keep_peaks(stage, roles)
            for stage, seconds in state["stages"].items():
                self._stage_seconds[stage] += seconds
            for stage, phase, seconds in state["phases"]:
                self._totals[stage, phase] += seconds

    def forget_open_steps(self) -> None:
        """Delete the spans of steps that were not recorded, because they will be repeated."""
        with self._lock:
            self._of_step.clear()

    def close(self) -> None:
        """Close the files and let the sinks finish within their deadline."""
        try:
            with writing(self._file, "a metric"):
                self._metrics.close()
            self._tell_calls()
            self._trace.close()
        finally:
            for sink in self._sinks:
                sink.close()
            self._sinks = []

    def _tell_calls(self) -> None:
        with self._lock:
            for span in self.account.untold():
                self._trace.call(span)

    def _check_stage(self, stage: str) -> None:
        assert stage in self._stages, f"unknown stage {stage!r}; known: {sorted(self._stages)}"

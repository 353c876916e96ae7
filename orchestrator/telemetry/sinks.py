"""Additional destinations of metrics (W&B, TensorBoard, Prometheus), each with a separate thread.

A sink is third-party code that often uses a network. If it blocks, raises or is too slow, it is
dropped with one warning, and training continues without delay.
"""

from __future__ import annotations

import importlib
import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from orchestrator.config.run import LoggerConfig
from orchestrator.run_files.folder import RunFolder
from orchestrator.telemetry.exported import Present
from orchestrator.telemetry.metrics import MetricRecord
from orchestrator.telemetry.prometheus import PrometheusSink
from workers.errors import ConfigError
from workers.process.caught_errors import Caught

Warn = Callable[[str], None]

# Opening imports packages and may start a helper process, so it gets longer than a write.
OPEN_SECONDS = 30.0
_QUEUE_LENGTH = 1024


class Sink(Protocol):
    """A destination of records. One thread calls open once, write per step, and close once."""

    name: str
    note: str  # where its metrics can be seen, for the user; "" = nothing to say

    def open(self) -> None:
        """Connect; called once."""
        ...

    def write(self, records: Sequence[MetricRecord]) -> None:
        """Write the records of one stage and step."""
        ...

    def close(self) -> None:
        """Flush what is pending; called once."""
        ...


class BackgroundSink:
    """Feeds a sink from a daemon thread through a bounded queue.

    `write` never waits. The sink is dropped when one of its calls raises, when one takes longer
    than `seconds` (noticed at the next `write` or at `close`), or when the queue is full.
    """

    def __init__(
        self, sink: Sink, seconds: float, warn: Warn, *, open_seconds: float = OPEN_SECONDS
    ) -> None:
        self._sink = sink
        self._seconds = seconds
        self._warn = warn
        self._queue: queue.Queue[Sequence[MetricRecord] | None] = queue.Queue(_QUEUE_LENGTH)
        self._lock = threading.Lock()
        self._dropped = False
        # Deadline of the running call; None between calls.
        self._deadline: float | None = time.monotonic() + max(seconds, open_seconds)
        self._thread = threading.Thread(target=self._run, name=f"sink-{sink.name}", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> bool:
        """Whether the sink was dropped."""
        return self._dropped

    def write(self, records: Sequence[MetricRecord]) -> None:
        """Queue records without waiting."""
        if self._late():
            self._drop("it does not answer in time")
        if self._dropped:
            return
        try:
            self._queue.put_nowait(records)
        except queue.Full:
            self._drop("it cannot keep up")

    def close(self) -> None:
        """Let the sink finish within its deadline, then drop it."""
        if self._dropped:
            return
        opening = self._deadline or 0.0
        end = max(time.monotonic() + self._seconds, opening)
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            self._drop("it cannot keep up")
            return
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            self._drop("it does not finish in time")

    def _late(self) -> bool:
        deadline = self._deadline
        return deadline is not None and time.monotonic() > deadline

    def _drop(self, why: str) -> None:
        with self._lock:
            first, self._dropped = not self._dropped, True
        if first:
            self._warn(f"{self._sink.name} is dropped: {why}. metrics.jsonl has everything.")

    def _run(self) -> None:
        quarantine = Caught(Exception)  # a sink may raise anything, which must not end the run
        with quarantine:
            self._feed()
        self._deadline = None
        error = quarantine.error
        if error is not None:
            first_line = str(error).partition("\n")[0].rstrip(".")
            self._drop(f"{type(error).__name__}: {first_line}")

    def _feed(self) -> None:
        self._sink.open()
        self._deadline = None
        while not self._dropped:
            records = self._queue.get()
            self._deadline = time.monotonic() + self._seconds
            if records is None:
                self._sink.close()
                return
            self._sink.write(records)
            self._deadline = None


def display_name(record: MetricRecord) -> str:
    """`STAGE/metric`: unlike the registry's name it differs between ppo and ppo_ptx."""
    return f"{record.stage}/{record.name.partition('/')[2]}"


class WandbSink:
    """Weights & Biases; `offline` needs neither a key nor a network."""

    name, note = "wandb", ""

    def __init__(
        self, folder: Path, logger: LoggerConfig, config: dict[str, object], run_id: str
    ) -> None:
        self._folder = folder
        self._run_id = run_id
        self._logger = logger
        self._config = config
        self._run: Any = None
        self._stages: set[str] = set()

    def open(self) -> None:
        """Start the run in the run folder."""
        wandb = importlib.import_module("wandb")
        # Must be first: without an API key, `online` would prompt on the terminal and wait. In
        # silent mode it raises instead, and the sink is dropped.
        wandb.setup(settings=wandb.Settings(silent=True))
        self._run = wandb.init(
            project=self._logger.wandb_project,
            name=self._folder.name,
            id=self._run_id,
            resume="allow",
            dir=str(self._folder),
            mode=self._logger.wandb_mode,
            config=self._config,
            # wandb's console capture would break the live view. init must time out before the sink
            # is dropped, or it would wait again when the program exits.
            settings=wandb.Settings(
                silent=True, console="off", x_disable_stats=True, init_timeout=OPEN_SECONDS * 2 / 3
            ),
        )

    def write(self, records: Sequence[MetricRecord]) -> None:
        """Log one step; every stage counts its own steps."""
        stage = records[0].stage
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        row = {display_name(record): record.value for record in records}
        self._run.log({**row, f"{stage}/step": records[0].step})

    def close(self) -> None:
        """Flush and end the run."""
        self._run.finish()


class TensorBoardSink:
    """Event files in RUN/tensorboard."""

    name, note = "TensorBoard", ""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def open(self) -> None:
        """Create the event file."""
        tensorboard = importlib.import_module("torch.utils.tensorboard")
        self._writer = tensorboard.SummaryWriter(str(self._folder / "tensorboard"))

    def write(self, records: Sequence[MetricRecord]) -> None:
        """Add one scalar per record."""
        for record in records:
            self._writer.add_scalar(display_name(record), record.value, record.step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def configured_sinks(
    folder: RunFolder,
    logger: LoggerConfig,
    config: dict[str, object],
    run_id: str,
    present: Callable[[], Present] = Present,
) -> list[Sink]:
    """The configured sinks, not opened yet.

    Args:
        folder: Of the run.
        logger: Which sinks, and their settings.
        config: The resolved configuration as plain values.
        run_id: Id of the run in external services.
        present: The state of the run at any moment; called by other threads.

    Raises:
        ConfigError: a sink's package is not installed, or its port cannot be opened.
    """
    require_packages(logger)
    sinks: list[Sink] = []
    if logger.wandb:
        sinks.append(WandbSink(folder.path, logger, config, run_id))
    if logger.tensorboard:
        sinks.append(TensorBoardSink(folder.path))
    if logger.prometheus:
        sinks.append(PrometheusSink(folder, logger, present))
    return sinks


_PACKAGES = {
    "wandb": ("wandb", "wandb"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "prometheus": ("prometheus_client", "prometheus-client"),
}


def require_packages(logger: LoggerConfig) -> None:
    """Check that the packages of the configured sinks are installed.

    Raises:
        ConfigError: one is not.
    """
    for key, (module, package) in _PACKAGES.items():
        if getattr(logger, key) and importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"logger.{key}=true, but the package {package} is not installed",
                where=f"logger.{key}",
                fix=f"pip install {package}, or set logger.{key}=false",
            )

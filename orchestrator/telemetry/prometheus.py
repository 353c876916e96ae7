"""Metrics of a running run for Prometheus, which fetches them over HTTP from this process.

prometheus_client serves them from threads of its own. Each answer has the newest recorded values
and the state of the run at that moment, so a run that waits is visible, too.
"""

from __future__ import annotations

import importlib
import json
import math
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

from orchestrator.config.run import LoggerConfig
from orchestrator.run_files.folder import RunFolder, write_text
from orchestrator.telemetry.exported import (
    LOSSES,
    OF_RECORDS,
    STAGE,
    STEP,
    STEP_TIME,
    UNFINISHED,
    WORKERS,
    Exported,
    Present,
    exported_as,
)
from orchestrator.telemetry.metrics import MetricRecord
from workers.errors import ConfigError
from workers.process.own_address import own_address

_EVERYWHERE = ("0.0.0.0", "::")
_REFUSED = (OSError, UnicodeError)  # the second of names that are too long for DNS
_Values = dict[tuple[str, ...], float]  # by the values of the labels


class Figures:
    """The newest values of the exported metrics: a collector of prometheus_client."""

    def __init__(self, run: str, present: Callable[[], Present]) -> None:
        """Begin without values.

        Args:
            run: Value of the label `run` of every metric.
            present: The state of the run; called by threads that serve Prometheus.
        """
        self._run = run
        self._present = present
        self._lock = threading.Lock()
        self._stage, self._step, self._at = "", 0, 0.0  # of the newest record
        self._values: dict[Exported, _Values] = defaultdict(dict)

    def take(self, records: Sequence[MetricRecord]) -> None:
        """Enter the records of one stage and step."""
        stage = records[0].stage
        with self._lock:
            if stage != self._stage:
                for metric, values in self._values.items():
                    if not metric.counts:
                        values.clear()  # the newest values of a stage that has ended mislead
            self._stage, self._step = stage, records[0].step
            self._at = time.time()  # noqa: TID251 - Prometheus compares it with its own clock
            for record in records:
                self._enter(record)

    def _enter(self, record: MetricRecord) -> None:
        if (found := exported_as(record.name)) is None:
            return
        metric, value = found
        labels = (record.stage, value) if value else (record.stage,)
        values = self._values[metric]
        if not metric.counts:
            values[labels] = record.value
        elif math.isfinite(record.value):
            values[labels] = values.get(labels, 0.0) + record.value

    def collect(self) -> Iterator[Any]:
        """The metrics as prometheus_client has them."""
        now = self._present()
        with self._lock:
            values = {metric: dict(found) for metric, found in self._values.items()}
            stage, step, at = self._stage, self._step, self._at
        yield self._family(STAGE, {(now.stage,): 1.0} if now.stage else {})
        yield self._family(STEP, {(stage,): float(step)} if stage else {})
        yield self._family(STEP_TIME, {(): at} if stage else {})
        yield self._family(WORKERS, {(role,): float(n) for role, n in now.workers.items()})
        yield self._family(LOSSES, {(role,): float(n) for role, n in now.losses.items()})
        yield self._family(UNFINISHED, {(): float(now.unfinished)})
        for metric in OF_RECORDS:
            yield self._family(metric, values.get(metric, {}))

    def _family(self, metric: Exported, values: _Values) -> Any:
        core: Any = importlib.import_module("prometheus_client.core")
        kind = core.CounterMetricFamily if metric.counts else core.GaugeMetricFamily
        text = f"{metric.meaning} Unit: {metric.unit}."
        family = kind(metric.name, text, labels=("run", *metric.labels))
        for labels, value in sorted(values.items()):
            family.add_metric((self._run, *labels), value)
        return family


class PrometheusSink:
    """Serves the metrics of a run from the moment it is made, until it is closed."""

    name = "Prometheus"

    def __init__(
        self, folder: RunFolder, logger: LoggerConfig, present: Callable[[], Present]
    ) -> None:
        """Open the port.

        Args:
            folder: A created run folder, which gets prometheus.json.
            logger: Address and port.
            present: The state of the run; must not wait, and is called by other threads.

        Raises:
            ConfigError: the port is taken, or the address is not one of this machine.
        """
        self._folder = folder
        self._figures = Figures("/".join(folder.path.absolute().parts[-2:]), present)
        client: Any = importlib.import_module("prometheus_client")
        registry = client.CollectorRegistry(auto_describe=False)
        registry.register(self._figures)
        address, port = logger.prometheus_address, logger.prometheus_port
        try:
            self._server, self._thread = client.start_http_server(port, address, registry)
        except _REFUSED as error:
            raise _cannot_serve(logger, error) from error
        port = self._server.server_address[1]
        host = own_address() if address in _EVERYWHERE else address
        self._target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.note = f"metrics for Prometheus: http://{self._target}/metrics"

    def open(self) -> None:
        """Write into the run folder where Prometheus finds the metrics."""
        write_text(self._folder.prometheus, json.dumps([{"targets": [self._target]}]) + "\n")

    def write(self, records: Sequence[MetricRecord]) -> None:
        """Enter the records of one stage and step."""
        self._figures.take(records)

    def close(self) -> None:
        """Close the port, and remove what says where it was."""
        self._folder.prometheus.unlink(missing_ok=True)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def require_port(logger: LoggerConfig) -> None:
    """Check that the port can be opened, before a run reads its data.

    Raises:
        ConfigError: the port is taken, or the address is not one of this machine.
    """
    address, port = logger.prometheus_address, logger.prometheus_port
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, place = found[0]
        with closing(socket.socket(family, kind, protocol)) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            trial.bind(place)
            trial.listen()
    except _REFUSED as error:
        raise _cannot_serve(logger, error) from error


def _cannot_serve(logger: LoggerConfig, error: OSError | UnicodeError) -> ConfigError:
    return ConfigError(
        f"metrics cannot be served at {logger.prometheus_address}, port {logger.prometheus_port}: "
        f"{(isinstance(error, OSError) and error.strerror) or error}",
        where="logger.prometheus_port",
        fix="choose a port that no other program has (0 = any free one), and as "
        "logger.prometheus_address one of this machine: 127.0.0.1, or 0.0.0.0 for all",
    )

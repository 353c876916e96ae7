"""What Prometheus is told of a run, read by the parser of Prometheus' own client."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.config.run import LoggerConfig
from orchestrator.run_files.folder import RunFolder
from orchestrator.telemetry.exported import EXPORTED, OF_RECORDS, Present, exported_as
from orchestrator.telemetry.metrics import METRIC_FAMILIES, METRICS
from orchestrator.telemetry.prometheus import PrometheusSink, require_port
from orchestrator.telemetry.recorder import Telemetry
from orchestrator.telemetry.sinks import configured_sinks, require_packages
from workers.errors import ConfigError

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]
PPO = {
    "ppo/step_seconds": 12.5, "ppo/tokens_per_second": 80.0, "ppo/sync_seconds": 1.25,
    "ppo/lag_max": 2.0, "ppo/open": 16.0, "ppo/generated": 24.0, "ppo/trained": 10.0,
    "ppo/dropped": 6.0, "ppo/dropped/surplus": 4.0, "ppo/dropped/no_reward": 2.0,
    "ppo/seconds/generate": 7.0, "ppo/idle_share/rollout": 0.25, "ppo/idle_share/critic": 0.75,
    "ppo/skipped_steps": 1.0, "ppo/score_mean": 3.0,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "mine").create()


@pytest.fixture
def telemetry(folder: RunFolder) -> Iterator[Telemetry]:
    with Telemetry(folder, LoggerConfig(prometheus=True), {}) as made:
        yield made


def scraped(folder: RunFolder) -> Values:
    """What Prometheus gets where the run folder says; every series is of this run."""
    [group] = json.loads(folder.prometheus.read_text())
    [target] = group["targets"]
    with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: Values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("run") == "runs/mine"
            found[sample.name, frozenset(labels.items())] = sample.value
    return found


def until(folder: RunFolder, name: str, value: float, **labels: str) -> Values:
    """What is scraped once a series has this value: the sink has a thread of its own."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if folder.prometheus.exists():
            found = scraped(folder)
            if found.get((name, frozenset(labels.items()))) == value:
                return found
        time.sleep(0.01)
    raise AssertionError(f"{name}{labels} never was {value}")


def series(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"rehearsal_{name}", frozenset(labels.items())


def test_a_step_is_exported_with_its_units_and_labels(
    folder: RunFolder, telemetry: Telemetry
) -> None:
    telemetry.present = lambda: Present("ppo", {"rollout": 2, "policy": 4}, {"rollout": 3}, 5)
    telemetry.record("ppo", 7, PPO)
    found = until(folder, "rehearsal_step", 7, stage="ppo")
    stamp = found.pop(series("last_step_timestamp_seconds"))
    assert stamp == pytest.approx(folder.metrics.stat().st_mtime, abs=600)
    assert found == {
        series("stage", stage="ppo"): 1,
        series("step", stage="ppo"): 7,
        series("workers", role="rollout"): 2,
        series("workers", role="policy"): 4,
        series("worker_losses_total", role="rollout"): 3,
        series("unfinished_sequences"): 5,
        series("tokens_per_second", stage="ppo"): 80,
        series("iteration_seconds", stage="ppo"): 12.5,
        series("phase_seconds", stage="ppo", phase="generate"): 7,
        series("role_idle_ratio", stage="ppo", role="rollout"): 0.25,
        series("role_idle_ratio", stage="ppo", role="critic"): 0.75,
        series("weight_sync_seconds", stage="ppo"): 1.25,
        series("staleness_updates", stage="ppo"): 2,
        series("open_sequences", stage="ppo"): 16,
        series("generated_sequences_total", stage="ppo"): 24,
        series("trained_sequences_total", stage="ppo"): 10,
        series("dropped_sequences_total", stage="ppo", reason="surplus"): 4,
        series("dropped_sequences_total", stage="ppo", reason="no_reward"): 2,
        series("skipped_optimizer_steps_total", stage="ppo"): 1,
    }


def test_counters_add_up_and_gauges_have_the_newest_value(
    folder: RunFolder, telemetry: Telemetry
) -> None:
    telemetry.record("ppo", 1, PPO)
    telemetry.record("ppo", 2, {"ppo/dropped/surplus": 3.0, "ppo/tokens_per_second": 90.0,
                                "ppo/generated": math.nan})  # fmt: skip
    found = until(folder, "rehearsal_step", 2, stage="ppo")
    assert found[series("dropped_sequences_total", stage="ppo", reason="surplus")] == 7
    assert found[series("dropped_sequences_total", stage="ppo", reason="no_reward")] == 2
    assert found[series("generated_sequences_total", stage="ppo")] == 24
    assert found[series("tokens_per_second", stage="ppo")] == 90
    assert found[series("weight_sync_seconds", stage="ppo")] == 1.25  # the newest sync


def test_a_new_stage_keeps_the_counters_and_forgets_the_gauges_of_the_last(
    folder: RunFolder, telemetry: Telemetry
) -> None:
    telemetry.record("ppo", 4, PPO)
    telemetry.record("ppo_ptx", 1, {"ppo/tokens_per_second": math.inf, "ppo/trained": 8.0})
    found = until(folder, "rehearsal_step", 1, stage="ppo_ptx")
    stages = {dict(labels).get("stage") for name, labels in found if not name.endswith("_total")}
    assert stages == {None, "ppo_ptx"}
    assert found[series("tokens_per_second", stage="ppo_ptx")] == math.inf
    assert found[series("trained_sequences_total", stage="ppo")] == 10
    assert found[series("trained_sequences_total", stage="ppo_ptx")] == 8


def test_a_run_is_there_before_its_first_step_and_gone_after_its_end(folder: RunFolder) -> None:
    with Telemetry(folder, LoggerConfig(prometheus=True), {}) as telemetry:
        assert until(folder, "rehearsal_unfinished_sequences", 0) == {
            series("unfinished_sequences"): 0
        }
        [note] = telemetry.notes
        [group] = json.loads(folder.prometheus.read_text())
        assert note == f"metrics for Prometheus: http://{group['targets'][0]}/metrics"
        host, _, port = group["targets"][0].partition(":")
        assert host == "127.0.0.1"
    assert not folder.prometheus.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


@pytest.mark.parametrize(
    ("address", "named"), [("0.0.0.0", r"[\d.]+"), ("localhost", "localhost"), ("::1", r"\[::1\]")]
)
def test_the_run_folder_names_an_address_that_others_can_reach(
    folder: RunFolder, address: str, named: str
) -> None:
    if address == "::1" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6")
    [sink] = configured_sinks(
        folder, LoggerConfig(prometheus=True, prometheus_address=address), {}, "id"
    )
    sink.open()
    [group] = json.loads(folder.prometheus.read_text())
    assert re.fullmatch(rf"{named}:\d+", group["targets"][0])
    assert "0.0.0.0" not in group["targets"][0]
    sink.close()


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1", "in use"),
        ("192.0.2.1", "[Cc]annot assign|not available"),
        ("x" * 70, "label"),
    ],
)
def test_a_port_that_cannot_be_opened_is_refused_before_the_run(
    folder: RunFolder, address: str, words: str, early: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        logger = LoggerConfig(prometheus=True, prometheus_address=address, prometheus_port=port)
        ask = require_port if early else lambda given: PrometheusSink(folder, given, Present)
        with pytest.raises(ConfigError, match=words) as caught:
            ask(logger)
    assert caught.value.where == "logger.prometheus_port"
    assert f"port {port}" in caught.value.what
    require_port(LoggerConfig(prometheus=True))


@pytest.mark.parametrize(
    ("key", "package"),
    [("prometheus", "prometheus-client"), ("wandb", "wandb"), ("tensorboard", "tensorboard")],
)
def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, key: str, package: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    require_packages(LoggerConfig())
    with pytest.raises(ConfigError, match=f"package {package} is not installed") as caught:
        require_packages(LoggerConfig(**{key: True}))
    assert caught.value.where == f"logger.{key}"


def test_what_is_asked_wrongly_harms_nobody(folder: RunFolder, telemetry: Telemetry) -> None:
    telemetry.record("ppo", 1, PPO)
    until(folder, "rehearsal_step", 1, stage="ppo")
    [group] = json.loads(folder.prometheus.read_text())
    host, _, port = group["targets"][0].partition(":")
    with (
        socket.create_connection((host, int(port))) as silent,
        socket.create_connection((host, int(port))) as noisy,
    ):
        noisy.sendall(b"\x00\xff nonsense\r\n\r\n")
        assert silent
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(f"http://{host}:{port}/metrics", data=b"x", timeout=10)
        assert scraped(folder)[series("step", stage="ppo")] == 1


def test_every_recorded_source_exists_and_is_a_timing_or_count_in_the_unit_of_its_name() -> None:
    for metric in OF_RECORDS:
        names = [f"ppo/{metric.source}"]
        if len(metric.labels) == 2:
            names = [n for n in METRICS if n.startswith(f"ppo/{metric.source}/")]
            names += [f"{f}x" for f in METRIC_FAMILIES if f == f"ppo/{metric.source}/"]
        assert names
        for name in names:
            assert exported_as(name) is not None
            assert exported_as(name)[0] is metric  # type: ignore[index]
            unit = (METRICS.get(name) or METRIC_FAMILIES[name[:-1]]).unit
            assert unit == {"ratio": "s/s"}.get(metric.unit, metric.unit)
    assert exported_as("ppo/score_mean") is None
    assert exported_as("ppo/dropped") is None  # the sum of its reasons
    assert exported_as("sft/tokens_per_second") is not None


def test_names_follow_the_conventions_of_prometheus() -> None:
    suffix = {"s": "_seconds", "ratio": "_ratio", "tokens/s": "_per_second"}
    assert len({metric.name for metric in EXPORTED}) == len(EXPORTED)
    for metric in EXPORTED:
        assert re.fullmatch(r"rehearsal_[a-z]+(_[a-z]+)*", metric.name)
        assert metric.name.endswith("_total") == metric.counts
        assert metric.stem.endswith(suffix.get(metric.unit, ""))
        assert metric.meaning.endswith(".")


def test_metrics_are_served_without_torch() -> None:
    code = "import sys, orchestrator.telemetry.recorder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0

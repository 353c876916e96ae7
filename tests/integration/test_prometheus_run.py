"""Prometheus and a real run: what is scraped while it runs is what the run folder says after it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.telemetry.exported import EXPORTED
from orchestrator.telemetry.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
# Nothing is lost, dropped or skipped in this run.
ABSENT = {f"rehearsal_{name}_total" for name in
          ("worker_losses", "dropped_sequences", "skipped_optimizer_steps")}  # fmt: skip
Scrape = dict[tuple[str, str], float]  # name, and its label besides run and stage


def scrape(folder: Path) -> tuple[str, Scrape] | None:
    """The stage of the newest step, and every series; None if nobody answers."""
    try:
        [group] = json.loads((folder / "prometheus.json").read_text())
        url = f"http://{group['targets'][0]}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    except (OSError, urllib.error.URLError):
        return None
    stage, found = "", Scrape()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("run") == f"{folder.parent.name}/run"
            of = labels.pop("stage", "")
            if sample.name == "rehearsal_step":
                stage = of
            where = f"{of} " if sample.name.endswith("sequences_total") else ""
            found[sample.name, where + "".join(labels.values())] = sample.value
    return stage, found


def test_a_run_is_followed_from_its_start_to_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with (tmp_path / "said").open("wb") as said:
        run = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.run", "+experiment=pocket_tiny",
             "logger=prometheus", f"run.dir={folder}"],
            cwd=ROOT, stdout=said, stderr=subprocess.STDOUT,
        )  # fmt: skip
        scrapes: list[tuple[str, Scrape]] = []
        while run.poll() is None:
            if (folder / "prometheus.json").exists() and (got := scrape(folder)) is not None:
                scrapes.append(got)
            time.sleep(0.05)
    text = (tmp_path / "said").read_text()
    assert run.returncode == 0, text[-3000:]
    assert "note: metrics for Prometheus: http://127.0.0.1:" in text
    assert not (folder / "prometheus.json").exists()

    seen = {name for _, found in scrapes for name, _ in found}
    assert seen == {metric.name for metric in EXPORTED} - ABSENT
    assert {found["rehearsal_workers", "rollout"] for _, found in scrapes
            if ("rehearsal_workers", "rollout") in found} == {1}  # fmt: skip
    assert max(found["rehearsal_unfinished_sequences", ""] for _, found in scrapes) > 0

    trained: dict[tuple[str, int], float] = defaultdict(float)  # by stage, up to each step
    for record in read_metrics(folder / "metrics.jsonl"):
        if record.name == "ppo/trained":
            before = trained[record.stage, record.step - 1]
            trained[record.stage, record.step] = before + record.value
    compared = 0
    for stage, found in scrapes:
        name = ("rehearsal_trained_sequences_total", f"{stage} ")
        if stage in ("ppo", "ppo_ptx") and name in found:
            assert found[name] == trained[stage, int(found["rehearsal_step", ""])]
            compared += 1
    assert compared > 10

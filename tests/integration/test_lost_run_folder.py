"""A run whose cluster and disk are lost goes on from its mirror: real Ray, vLLM and DeepSpeed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.telemetry.metrics import comparable, read_metrics

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def s3() -> Iterator[None]:
    """A local server with the interface of S3 and one bucket; the environment names it."""
    server, boto3 = pytest.importorskip("moto.server"), pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        running.start()
        url = "http://{}:{}".format(*running.get_host_and_port())
        patch.setenv("AWS_ENDPOINT_URL", url)
        # its buckets belong to the process, not to the server
        urllib.request.urlopen(f"{url}/moto-api/reset", data=b"", timeout=30).close()
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield
        running.stop()


def start(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    folder.parent.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.run", "+experiment=pocket_tiny",
         f"run.dir={folder}", "run.checkpoint.every_steps=1", *overrides],
        cwd=ROOT, env=os.environ | {"COLUMNS": "120"},
        stdout=(folder.parent / "stdout").open("ab"), stderr=subprocess.STDOUT,
    )  # fmt: skip


def said(folder: Path) -> str:
    return (folder.parent / "stdout").read_text()


def traces(folder: Path) -> dict[str, object]:
    summary = json.loads((folder / "summary.json").read_text())
    weights = sorted(folder.glob("checkpoints/*/model.safetensors"))
    texts = ("rollouts.jsonl", "rankings.jsonl", "comparison.json")
    return {
        "metrics": comparable(read_metrics(folder / "metrics.jsonl")),
        "weights": {w.parent.name: hashlib.sha256(w.read_bytes()).hexdigest() for w in weights},
        "texts": [(folder / "samples" / name).read_text() for name in texts],
        "ledger": summary["ledger"],
        "evaluation": summary["evaluation"],
        "syncs": summary["weight_sync"]["count"],
        "parity": summary["weight_sync"]["parity_max_abs_logprob_diff"],
    }


def copies() -> list[str]:
    """Complete copies in the bucket."""
    import boto3

    found = boto3.client("s3").list_objects_v2(Bucket="bucket", Prefix="run/copies/")
    names = [each["Key"] for each in found.get("Contents", [])]
    return [name.split("/")[2] for name in names if name.endswith("/complete.json")]


@pytest.mark.usefixtures("s3")
def test_a_run_whose_cluster_and_folder_are_lost_ends_in_the_same(tmp_path: Path) -> None:
    once, often = tmp_path / "once" / "run", tmp_path / "often" / "run"
    assert start(once).wait(timeout=900) == 0, said(once)[-3000:]
    mirrored = ["run.mirror=s3://bucket/run", "resume=auto"]
    for stage in ("reward_model", "ppo_ptx"):
        process = start(often, *mirrored)
        until = time.monotonic() + 600
        try:
            while not any(f"-{stage}-" in name for name in copies()):
                assert process.poll() is None, said(often)[-3000:]
                assert time.monotonic() < until, copies()
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
        shutil.rmtree(often)
    assert start(often, *mirrored).wait(timeout=900) == 0, said(often)[-3000:]
    assert said(often).count("from s3://bucket/run: ") == 2
    assert traces(often) == traces(once)
    mirror = json.loads((often / "summary.json").read_text())["mirror"]
    assert (mirror["failures"], mirror["trouble"]) == (0, "")
    assert mirror["newest"] == max(p.name for p in often.glob("state/*-*-*"))
    assert len(copies()) == 2  # run.checkpoint.keep_last


@pytest.mark.usefixtures("s3")
def test_a_second_run_to_one_url_and_a_wrong_bucket_start_nothing(tmp_path: Path) -> None:
    first, second = tmp_path / "first" / "run", tmp_path / "second" / "run"
    pretrain = ["stages=[pretrain]", "run.mirror=s3://bucket/run"]
    assert start(first, *pretrain).wait(timeout=900) == 0, said(first)[-3000:]
    assert start(second, *pretrain).wait(timeout=60) == 2
    assert "the mirror already holds a run" in said(second)
    assert start(second, "run.mirror=s3://wrong/run").wait(timeout=60) == 4
    assert "the mirror is not there" in said(second)
    assert not (second / "metrics.jsonl").exists()

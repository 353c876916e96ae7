"""A run whose reward has a server among its terms, which fails on some sequences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator.telemetry.metrics import comparable, read_metrics, series

ROOT = Path(__file__).resolve().parents[2]
KEY = "s3cret-of-the-server"
REASON = "server: remote reward: the server refuses the sequence"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert self.headers["authorization"] == f"Bearer {KEY}"
        assert all(set(row) == {"answer"} for row in body["rows"])
        scores: list[Any] = []
        for response in body["responses"]:
            luck = zlib.crc32(response.encode()) % 100
            scores.append({"error": "bad luck"} if luck < 20 else luck / 100)
        text = json.dumps({"scores": scores}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/score"
    server.shutdown()
    server.server_close()


def start(folder: Path, url: str, *overrides: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "orchestrator.run", "+experiment=pocket_tiny", f"run.dir={folder}",
        "stages=[pretrain,sft,ppo]", "data.keep_columns=[answer]", "samples.all=true",
        "rollout.stream_sequences=4", "reward.combine=normalised",
        "reward.terms.server.kind=remote", f"reward.terms.server.url={url}",
        "reward.terms.server.columns=[answer]", "reward.terms.server.key_variable=SERVER_KEY",
        "reward.terms.server.batch=2",
        "reward.terms.right.kind=verifier", "reward.terms.right.verifier=exact",
        "reward.terms.right.column=answer", "reward.terms.right.weight=0.5", *overrides,
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"SERVER_KEY": KEY}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(folder: Path, url: str, *overrides: str) -> None:
    process = start(folder, url, *overrides)
    said = process.communicate(timeout=290)[1]
    assert process.returncode == 0, said[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_failed_sequences_are_drops_and_the_run_finishes(tmp_path: Path, url: str) -> None:
    first = tmp_path / "run"
    run(first, url)
    summary = json.loads((first / "summary.json").read_text())
    dropped = summary["drops"][REASON]
    assert 0 < dropped < summary["ledger"]["generated"]
    metrics = read_metrics(first / "metrics.jsonl")
    failed = series(metrics, "ppo", "ppo/reward_failed/server")
    assert sum(value for _, value in failed) == dropped
    assert len(series(metrics, "ppo", "ppo/reward/server")) == 2
    assert len(series(metrics, "ppo", "ppo/reward/right")) == 2
    rows = [
        json.loads(line) for line in (first / "samples" / "rollouts.jsonl").read_text().splitlines()
    ]
    assert sum(row["dropped"] == REASON for row in rows) == dropped
    assert all((row["terms"]["server"] is None) == (row["dropped"] == REASON) for row in rows)
    assert (first / "plots" / "terms.png").is_file()
    written = [p for p in first.rglob("*") if p.is_file() and p.suffix != ".safetensors"]
    assert len(written) > 10
    assert not [p for p in written if KEY.encode() in p.read_bytes()]


def traces(folder: Path) -> dict[str, object]:
    """Everything that must not depend on interruptions."""
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "metrics": comparable(read_metrics(folder / "metrics.jsonl")),
        "weights": (folder / "checkpoints" / "ppo" / "model.safetensors").read_bytes(),
        "rollouts": (folder / "samples" / "rollouts.jsonl").read_text(),
        "ledger": summary["ledger"],
        "drops": summary["drops"],
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_with_its_server(tmp_path: Path, url: str) -> None:
    once, again = tmp_path / "once", tmp_path / "again"
    own = ("run.checkpoint.every_steps=1", "run.checkpoint.keep_last=100")
    run(once, url, *own)
    process, until = start(again, url, *own), time.monotonic() + 290
    try:
        while not [p for p in again.glob("state/*-ppo-1") if not p.suffix]:
            assert process.poll() is None
            assert time.monotonic() < until, "the first step was never saved"
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    run(again, url, *own, "resume=auto")
    assert traces(again) == traces(once)

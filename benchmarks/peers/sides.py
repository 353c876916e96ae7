"""One launch of a side: our program, or a peer's script in its environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import ROOT
from benchmarks.peers.environments import ensure
from benchmarks.peers.figures import OURS, Turn, check_work, turn_of
from benchmarks.peers.marks import Mark, read_marks
from benchmarks.peers.shapes import LEARNING_RATE, Shape, run_keys
from benchmarks.peers.watch import Watch
from workers.errors import RoleError

SCRIPTS = ROOT / "peers"
PEERS = {  # name -> script, environment ("" = this one), settings of its own
    "trl": ("run_trl.py", "trl", {"collect": True}),
    "trl_without_collect": ("run_trl.py", "trl", {"collect": False}),
    "floor": ("run_floor.py", "", {}),
}
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_SECONDS = 1800.0  # of a launch


@dataclass(frozen=True, slots=True)
class Comparison:
    """What all launches of a comparison share."""

    shape: Shape
    inputs: Path  # what `shapes.make_inputs` wrote
    scratch: Path
    cache: Path
    steps: int
    warm_up: int
    threads: int
    precisions: dict[str, str] = field(default_factory=dict)  # by side
    environment: dict[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()  # further keys of our run


def launch(name: str, settings: Comparison, number: int) -> Turn:
    """Run a side once, and check that it did the shape's work.

    Raises:
        RoleError: It failed, or took too long.
        DataError: It did other work.
    """
    folder = settings.scratch / f"{name}_{number}"
    folder.mkdir(parents=True)
    if name == OURS:
        command, clock = our_command(settings, folder), SpanClock(folder / "run")
        poll, read = clock.poll, lambda: our_marks(folder / "run", clock)
    else:
        command = peer_command(name, settings, folder)
        poll, read = _nothing, lambda: read_marks(folder / "marks.jsonl")
    begun, watch = _run(name, command, settings, folder, poll)
    marks = read()
    check_work(name, settings.shape, settings.steps, marks)
    return turn_of(marks, watch.samples, watch.peak_bytes, begun, settings.warm_up)


def our_command(settings: Comparison, folder: Path) -> list[str]:
    """The command line of our program."""
    precision = ["trainer=zero1_bf16", "rollout.precision=bf16"]
    return [
        sys.executable, "-m", "orchestrator.run",
        *run_keys(settings.shape, settings.inputs, settings.steps),
        *(precision if settings.precisions[OURS] == "bf16" else []),
        *settings.keys, f"run.dir={folder / 'run'}",
    ]  # fmt: skip


def peer_command(name: str, settings: Comparison, folder: Path) -> list[str]:
    """A peer's script with its job, which is written into the folder."""
    script, environment, own = PEERS[name]
    python = str(ensure(environment, settings.cache)[0]) if environment else sys.executable
    path = folder / "job.json"
    path.write_text(json.dumps(job(name, settings, folder) | own), encoding="utf-8")
    return [python, str(SCRIPTS / script), str(path)]


def job(name: str, settings: Comparison, folder: Path) -> dict[str, Any]:
    """What a peer's script is told."""
    precision = settings.precisions[name]
    return asdict(settings.shape) | {
        "kv_cache_mib": settings.shape.kv_cache_mib,
        "inputs": str(settings.inputs), "scratch": str(folder / "scratch"),
        "marks": str(folder / "marks.jsonl"), "steps": settings.steps,
        "threads": settings.threads, "learning_rate": LEARNING_RATE,
        "precision": precision, "dtype": _DTYPES[precision],
    }  # fmt: skip


def _run(
    name: str, command: list[str], settings: Comparison, folder: Path, poll: Callable[[], None]
) -> tuple[float, Watch]:
    environment = {
        k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "PYTHONPATH")
    }
    environment |= settings.environment
    if name == OURS:
        environment["PYTHONPATH"] = str(ROOT.parent)
    output = folder / "output.txt"
    with output.open("w", encoding="utf-8") as file:
        begun = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT.parent, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        watch = Watch(process.pid, poll)
        try:
            code = process.wait(_SECONDS)
        except subprocess.TimeoutExpired as error:
            process.terminate()
            raise RoleError(
                f"{name} ran for more than {_SECONDS:g} s", where=" ".join(command)
            ) from error
        finally:
            watch.end()
    if code != 0:
        last = output.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RoleError(f"{name} ended with {code}:\n{last}", where=" ".join(command))
    return begun, watch


class SpanClock:
    """Finds the monotonic second at which the trace of our run began.

    A span is written when it ends, so the trace began at the earliest of (seen - end of span).
    """

    def __init__(self, run: Path) -> None:
        self._path = run / "trace" / "spans.json"
        self._read = 0
        self.began = float("inf")

    def poll(self) -> None:
        """Look at the spans that were written since."""
        if not self._path.is_file():
            return
        with self._path.open(encoding="utf-8") as file:
            file.seek(self._read)
            text = file.read()
        now, (whole, _, _) = time.monotonic(), text.rpartition("\n")
        self._read += len(whole.encode()) + 1 if whole else 0
        for line in whole.splitlines():
            span = json.loads(line.strip().rstrip(",").lstrip("[]") or "{}")
            if span.get("ph") == "X":
                self.began = min(self.began, now - (span["ts"] + span["dur"]) / 1e6)


def our_marks(run: Path, clock: SpanClock) -> list[Mark]:
    """Steps of our run: each ends where the next begins to generate, the last with its sync."""
    spans = json.loads((run / "trace" / "spans.json").read_text(encoding="utf-8"))
    driver = [s for s in spans if s["ph"] == "X" and s["pid"] == 0]
    begins = sorted(s["ts"] for s in driver if s["name"] == "generate")
    last = max(s["ts"] + s["dur"] for s in driver if s["name"] == "weight_sync")
    work = replace(_our_work(run), at=0.0)
    counts = _each_step(run)
    ends = [at / 1e6 + clock.began for at in (*begins[1:], last)]
    return [
        replace(work, at=at, sequences=sequences, response_tokens=tokens)
        for at, (sequences, tokens) in zip(ends, counts, strict=True)
    ]


def _our_work(run: Path) -> Mark:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["algorithm"]
    sequences = config["prompts_per_iteration"] * config["samples_per_prompt"]
    kept = (run / "samples" / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = {len(json.loads(line)["prompt"].split()) for line in kept}
    return Mark(
        at=0.0, sequences=0, response_tokens=0,
        prompt_tokens=prompts.pop() if len(prompts) == 1 else -1,
        optimizer_steps=config["epochs"] * sequences // config["sequences_per_minibatch"],
    )  # fmt: skip


def _each_step(run: Path) -> list[tuple[int, int]]:
    """Trained sequences and tokens of each response, by step; -1 tokens where they differ."""
    found: dict[int, dict[str, float]] = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["step"]:
            found.setdefault(row["step"], {})[row["name"]] = row["value"]
    return [
        (
            int(each["ppo/trained"]),
            int(mean) if (mean := each["ppo/response_tokens_mean"]) == int(mean) else -1,
        )
        for _, each in sorted(found.items())
        if "ppo/trained" in each
    ]


def _nothing() -> None:
    pass

"""How long does a PPO step take without a critic (grpo, rloo), next to a step with one?

Whole runs of the stage `ppo` on the pocket world's shape, in turns (A B A B). All sides have the
same prompts, samples per prompt, minibatches and seeds, and a learning rate that changes no
sample, so that every side trains on the same sequences; that is checked. A step lasts from one
request for samples to the next; processor seconds are those of the whole tree of processes in the
same time, and memory is its largest proportional set size.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.common import (
    ROOT,
    first_line,
    given,
    machine,
    make_checkpoints,
    print_table,
    write_result,
)
from benchmarks.peers.sides import SpanClock
from benchmarks.peers.watch import Sample, Watch
from benchmarks.ppo_step import read_spans
from orchestrator.telemetry.metrics import read_metrics

BASE = "instructgpt"  # PPO with a critic
SHAPE = (
    "+experiment=pocket", "stages=[ppo]", "algorithm.prompts_per_iteration=32",
    "algorithm.samples_per_prompt=4", "algorithm.sequences_per_minibatch=32",
    "algorithm.evaluate_every=0", "algorithm.policy_optimizer.learning_rate=1e-12",
)  # fmt: skip
SECONDS = 900.0


@dataclass(frozen=True)
class Turn:
    """One run of one side; medians over its counted steps."""

    step_seconds: float
    cpu_seconds_per_step: float
    peak_mib: float
    sequences: float  # trained, all counted steps
    tokens: float  # response tokens of a sequence, mean of the counted steps


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", default="grpo", help="options of conf/algorithm, by commas")
    parser.add_argument("--repetitions", type=int, default=3, help="turns of each side")
    parser.add_argument("--steps", type=int, default=12, help="steps that count")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them")
    parser.add_argument("--checkpoints", type=Path, help="folder with base, sft and reward_model")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of results")
    return parser.parse_args()


def turn(name: str, checkpoints: Path, steps: int, warm_up: int) -> Turn:
    """Run one side."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        command = [
            sys.executable, "-m", "orchestrator.run", *SHAPE, f"algorithm={name}",
            *given(checkpoints), f"algorithm.iterations={steps}", f"run.dir={folder}",
        ]  # fmt: skip
        clock = SpanClock(folder)
        process = subprocess.Popen(
            command, cwd=ROOT.parent, env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        watch = Watch(process.pid, clock.poll)
        try:
            _, said = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
            watch.end()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}\n{said[-4000:]}")
        return read_turn(folder, clock.began, watch, warm_up)


def read_turn(folder: Path, began: float, watch: Watch, warm_up: int) -> Turn:
    """What a finished run and its watch say about the counted steps."""
    driver, _ = read_spans(folder)
    begins = [begin for begin, _ in sorted(driver["generate"])][warm_up:]
    counted = range(warm_up + 1, warm_up + len(begins))  # steps are named from 1
    records = [r for r in read_metrics(folder / "metrics.jsonl") if r.step in counted]
    of = lambda name: [r.value for r in records if r.name == name]  # noqa: E731
    return Turn(
        step_seconds=statistics.median(np.diff(begins)),
        cpu_seconds_per_step=cpu_between(watch.samples, began + begins[0], began + begins[-1])
        / (len(begins) - 1),
        peak_mib=watch.peak_bytes / (1 << 20),
        sequences=sum(of("ppo/trained")),
        tokens=statistics.mean(of("ppo/response_tokens_mean")),
    )


def cpu_between(samples: Sequence[Sample], begin: float, end: float) -> float:
    """Processor seconds between two times of the monotonic clock, by linear interpolation."""
    first, last = np.interp([begin, end], [s.at for s in samples], [s.cpu for s in samples])
    return float(last - first)


def require_equal_work(turns: dict[str, list[Turn]]) -> None:
    """End the program unless all sides trained on the same sequences."""
    work = {name: {(t.sequences, round(t.tokens, 6)) for t in each} for name, each in turns.items()}
    if len(set().union(*work.values())) != 1:
        raise SystemExit(f"the sides did not train on the same sequences: {work}")


def main() -> None:
    args = arguments()
    names = [BASE, *args.sides.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        made = args.checkpoints or make_checkpoints(Path(scratch), ("+experiment=pocket",))
        turns: dict[str, list[Turn]] = {name: [] for name in names}
        for _ in range(args.repetitions):
            for name in names:
                turns[name].append(turn(name, made, args.warm_up + args.steps + 1, args.warm_up))
    require_equal_work(turns)
    medians = {
        name: {
            field: statistics.median([getattr(t, field) for t in each])
            for field in Turn.__dataclass_fields__
        }
        for name, each in turns.items()
    }
    ratios = {
        name: {
            field: statistics.median(
                [
                    getattr(a, field) / getattr(b, field)
                    for a, b in zip(turns[name], turns[BASE], strict=True)
                ]
            )
            for field in ("step_seconds", "cpu_seconds_per_step", "peak_mib")
        }
        for name in names[1:]
    }
    path = write_result(
        args.out,
        "critic_free_step",
        {
            "question": first_line(__doc__),
            "machine": machine(),
            "settings": {"shape": SHAPE, "steps": args.steps, "warm_up": args.warm_up},
            "medians": medians,
            "ratios_to_a_step_with_a_critic": ratios,
            "turns": {name: [asdict(t) for t in each] for name, each in turns.items()},
        },
    )
    print_table(
        ["side", "ms/step", "CPU ms/step", "peak MiB", "x time", "x CPU", "x memory"],
        [
            [
                name, f"{m['step_seconds'] * 1e3:.0f}", f"{m['cpu_seconds_per_step'] * 1e3:.0f}",
                f"{m['peak_mib']:.0f}",
                *(f"{ratios[name][f]:.2f}" if name in ratios else "" for f in (
                    "step_seconds", "cpu_seconds_per_step", "peak_mib")),
            ]
            for name, m in medians.items()
        ],
    )  # fmt: skip
    print(f"written to {path}")


if __name__ == "__main__":
    main()

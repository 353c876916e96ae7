"""How long does a PPO step take, by phase, and how much of it is no work of a role's?

A whole run of the stage `ppo` through `orchestrator.run`, read from what it leaves behind: the
steps' phases from the driver's track of trace/spans.json, the roles' work from theirs. A step
lasts from one request for samples to the next, so records and checkpoints between steps count as
well. `outside` is the time in none of generate, score, train and sync; `no role` the time in which
no role was in a call, wherever it lies. The first steps warm up and are left out.

Shapes: `tiny` is a Llama of 2 layers and width 128 with 8 samples of up to 24 tokens per step,
`pocket` the experiment of that name, `100m` a Llama of 99 million parameters with 8 samples.
Checkpoints that are not given are made by a few steps of the stages before. `llama_70m` is that of
`benchmarks.peers`: 71 million parameters from random weights, 16 samples of 32 + 64 tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.common import (
    RESULTS,
    first_line,
    given,
    machine,
    make_checkpoints,
    print_table,
    run,
    write_result,
)
from benchmarks.peers import shapes
from orchestrator.telemetry.role_time import covered

PHASES = {
    "generate": "generate", "reward": "score", "logprobs": "score", "reference": "score",
    "values": "score", "policy_update": "train", "critic_update": "train", "weight_sync": "sync",
}  # fmt: skip

Interval = tuple[float, float]
SMALL = (
    "algorithm.prompts_per_iteration=8", "algorithm.sequences_per_minibatch=8",
    "rollout.max_response_tokens=24", "rollout.max_concurrent_sequences=32",
    "rollout.kv_cache_mib=64",
)  # fmt: skip


def pocket_model(hidden: int, layers: int, heads: int) -> tuple[str, ...]:
    sizes = {
        "hidden_size": hidden, "layers": layers, "heads": heads, "kv_heads": heads,
        "intermediate_size": 8 * hidden // 3 // 16 * 16,
    }  # fmt: skip
    return tuple(f"model.pocket.{name}={size}" for name, size in sizes.items())


SHAPES = {
    "tiny": ("+experiment=pocket_tiny", *pocket_model(128, 2, 4), *SMALL),
    "pocket": ("+experiment=pocket",),
    "100m": ("+experiment=pocket_tiny", *pocket_model(768, 14, 12), *SMALL),
}
RANDOM = ("llama_70m",)  # shapes whose checkpoints no stage trains


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="tiny", choices=[*SHAPES, *RANDOM], help="what runs")
    parser.add_argument("--steps", type=int, default=12, help="steps that count")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them")
    parser.add_argument("--checkpoints", type=Path,
                        help="folder with base (not llama_70m), sft and reward_model")  # fmt: skip
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE",
                        help="further arguments of the run")  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    return parser.parse_args()


def read_spans(folder: Path) -> tuple[dict[str, list[Interval]], dict[str, list[Interval]]]:
    """Seconds of the driver's phases and of the roles' calls, by track."""
    events: list[dict[str, Any]] = json.loads((folder / "trace" / "spans.json").read_text())
    kinds = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    found: dict[str, dict[str, list[Interval]]] = {
        kind: defaultdict(list) for kind in ("driver", "roles")
    }
    for e in events:
        if e["ph"] == "X":
            track = names[e["pid"], e["tid"]]
            found[kinds[e["pid"]]][track].append((e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6))
    return found["driver"], found["roles"]


def measure(folder: Path, warm_up: int) -> dict[str, list[float]]:
    """Seconds of each step: whole, by phase, outside of all phases, and with no role at work."""
    driver, roles = read_spans(folder)
    begins = [begin for begin, _ in sorted(driver["generate"])]
    calls = [interval for track in roles.values() for interval in track]
    phases: dict[str, list[Interval]] = defaultdict(list)
    for name, phase in PHASES.items():
        phases[phase] += driver[name]
    found: dict[str, list[float]] = defaultdict(list)
    for window in list(itertools.pairwise(begins))[warm_up:]:
        whole = window[1] - window[0]
        found["step"].append(whole)
        for phase, intervals in phases.items():
            found[phase].append(covered(intervals, window))
        found["outside"].append(whole - covered([i for p in phases.values() for i in p], window))
        found["no role"].append(whole - covered(calls, window))
    return dict(found)


def run_keys(name: str, checkpoints: Path | None, made: Path, steps: int) -> list[str]:
    """The command line of the run; models that are not given are written to the folder `made`."""
    if name in RANDOM:
        shape = shapes.SHAPES[name]
        if checkpoints is None:
            shapes.make_inputs(made, shape, steps)
        return shapes.run_keys(shape, checkpoints or made, steps)
    shape = SHAPES[name]
    return [
        *shape, "stages=[ppo]", *given(checkpoints or make_checkpoints(made, shape)),
        f"algorithm.iterations={steps}", "algorithm.evaluate_every=0",
    ]  # fmt: skip


def ledger(folder: Path, steps: int) -> float:
    """Sequences trained per step."""
    return json.loads((folder / "summary.json").read_text())["ledger"]["trained"] / steps


def main() -> None:
    args = arguments()
    steps = args.warm_up + args.steps + 1
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        keys = [*run_keys(args.shape, args.checkpoints, Path(scratch) / "models", steps), *args.set]
        run(folder, keys)
        seconds = measure(folder, args.warm_up)
        samples = ledger(folder, steps)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    shares = {
        name: statistics.median(
            [a / b for a, b in zip(seconds[name], seconds["step"], strict=True)]
        )
        for name in seconds
    }
    path = write_result(
        args.out,
        f"ppo_step_{args.shape}",
        {
            "question": first_line(__doc__),
            "machine": machine(),
            "settings": {
                "shape": args.shape,
                "arguments": [key for key in keys if str(scratch) not in key],
                "steps": args.steps,
            },
            "samples_per_step": samples,
            "samples_per_second": samples / medians["step"],
            "median_seconds": medians,
            "fastest_step_seconds": min(seconds["step"]),
            "median_share_of_step": shares,
            "seconds": seconds,
        },
    )
    print_table(
        ["part", "median ms", "least ms", "of the step"],
        [
            [name, f"{medians[name] * 1e3:.1f}", f"{min(seconds[name]) * 1e3:.1f}",
             f"{shares[name]:.1%}"]
            for name in seconds
        ],
    )  # fmt: skip
    print(f"{samples / medians['step']:.1f} samples/s, {samples:g} samples a step")
    print(f"written to {path}")


if __name__ == "__main__":
    main()

"""How long does a run take from its launch to its first PPO optimizer step, and with what?

The stage `ppo` of the pocket world through `orchestrator.run`, from given checkpoints, for two
iterations. The parts are the run's own (`timing.start` in summary.json), one after the other from
the start of the process; within them the trace shows how long each role's calls took; they overlap.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

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

SHAPE = ("+experiment=pocket",)
VERBS = ("prepare", "start", "join", "load")  # of the roles, before the first sync


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=Path,
                        help="folder with base, sft and reward_model; else made")  # fmt: skip
    parser.add_argument("--repetitions", type=int, default=3, help="launches")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE",
                        help="further arguments of the run")  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    return parser.parse_args()


def role_calls(folder: Path) -> dict[str, float]:
    """Seconds of each role's first calls, mean over its workers."""
    events = json.loads((folder / "trace" / "spans.json").read_text())
    found: dict[str, list[float]] = defaultdict(list)
    for e in events:
        if e["ph"] == "X" and e["name"] in VERBS:
            found[f"{e['cat']} {e['name']}"].append(e["dur"] / 1e6)
    return {name: statistics.fmean(each) for name, each in found.items()}


def main() -> None:
    args = arguments()
    parts: dict[str, list[float]] = defaultdict(list)
    calls: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        models = args.checkpoints or make_checkpoints(Path(scratch) / "models", SHAPE)
        for number in range(args.repetitions):
            folder = Path(scratch) / str(number)
            run(
                folder,
                [
                    *SHAPE, "stages=[ppo]", *given(models), "algorithm.iterations=3",
                    "algorithm.evaluate_every=0", *args.set,
                ],
            )  # fmt: skip
            timing = json.loads((folder / "summary.json").read_text())["timing"]
            parts["launch to first step"].append(timing["first_optimizer_step_seconds"])
            for name, seconds in timing["start"].items():
                parts[name].append(seconds)
            for name, seconds in role_calls(folder).items():
                calls[name].append(seconds)
    path = write_result(
        args.out,
        "startup",
        {
            "question": first_line(__doc__),
            "machine": machine(),
            "settings": {"arguments": [*SHAPE, *args.set], "repetitions": args.repetitions},
            "median_seconds": {name: statistics.median(each) for name, each in parts.items()},
            "seconds": parts,
            "seconds_of_calls": calls,
        },
    )
    rows = [[name, f"{statistics.median(s):.2f}", f"{min(s):.2f}"] for name, s in parts.items()]
    rows += [[f"  {n}", f"{statistics.median(s):.2f}", f"{min(s):.2f}"] for n, s in calls.items()]
    print_table(["part (indented: calls, which overlap)", "median s", "least s"], rows)
    print(f"written to {path}")


if __name__ == "__main__":
    main()

"""What does generation ahead of training gain, and what does it cost in quality?

PPO in the pocket world from the same SFT and reward model at several staleness bounds, each a
whole run of `python -m orchestrator.run` with real roles: samples a second, the share of an
iteration that the loop waits for generation, how long each role is idle, and the gold score at the
end. The bounds take turns within each seed, so that noise of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, first_line, machine, write_result
from orchestrator.telemetry.metrics import MetricRecord, read_metrics

# Phases of each role; they follow each other, so their sum is the time that the role works.
WORK = {
    "reward": ("reward",),
    "reference": ("reference",),
    "policy": ("logprobs", "experience", "policy_update"),
    "critic": ("values", "critic_update"),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=first_line(__doc__))
    parser.add_argument("--sft", type=Path, required=True, help="checkpoint of the SFT model")
    parser.add_argument("--reward-model", type=Path, required=True, help="its reward model")
    parser.add_argument("--experiment", default="pocket", help="conf/experiment")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--iterations", type=int, default=40, help="PPO iterations of a run")
    parser.add_argument("--cap", type=float, default=2.0,
                        help="algorithm.importance_cap where staleness > 0; 0 = none")  # fmt: skip
    parser.add_argument("--inflight", action="store_true", help="rollout.inflight_updates")
    parser.add_argument("--join", action="store_true", help="rollout.join_running")
    parser.add_argument("--evaluate-every", type=int, default=8, help="iterations")
    parser.add_argument("--warm-up", type=int, default=1,
                        help="first iterations that are left out of the speeds")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=7200, help="deadline of one run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    parser.add_argument("overrides", nargs="*", help="more keys of the configuration, KEY=VALUE")
    return parser.parse_args()


def run(args: argparse.Namespace, staleness: int, seed: int, folder: Path) -> list[MetricRecord]:
    """One whole run; its metrics."""
    keys: dict[str, object] = {
        "run.dir": folder, "seed": seed, "stages": "[ppo]", "logger.live": "false",
        "model.checkpoints.sft": args.sft.resolve(),
        "model.checkpoints.reward_model": args.reward_model.resolve(),
        "algorithm.iterations": args.iterations, "algorithm.staleness": staleness,
        "algorithm.evaluate_every": args.evaluate_every,
    }  # fmt: skip
    if staleness and args.cap:
        keys["algorithm.importance_cap"] = args.cap
    if staleness and args.inflight:
        keys["rollout.inflight_updates"] = "true"
    if staleness and args.join:
        keys["rollout.join_running"] = "true"
    overrides = [f"{key}={value}" for key, value in keys.items()]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.run", f"+experiment={args.experiment}", *overrides,
         *args.overrides],
        cwd=ROOT.parent, env=os.environ | {"COLUMNS": "120"}, timeout=args.seconds,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stdout[-2000:] + done.stderr[-2000:]
        raise SystemExit(f"staleness {staleness}, seed {seed}: {said}")
    return read_metrics(folder / "metrics.jsonl")


def figures(records: list[MetricRecord], warm_up: int) -> dict[str, Any]:
    """What one run comes to; speeds without the first iterations, and without gold scores."""
    series: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record.name.startswith("ppo/") and record.step > 0:
            series[record.name.removeprefix("ppo/")].append(record.value)
    gold = [r.value for r in records if r.name == "ppo/gold_mean"]
    seconds = series["step_seconds"][warm_up:]
    trained = series["trained"][warm_up:]
    total = sum(seconds)
    share = {
        role: sum(sum(series[f"seconds/{phase}"][warm_up:]) for phase in phases) / total
        for role, phases in WORK.items()
    }
    return {
        "samples_per_second": sum(trained) / total,
        "seconds_an_iteration": statistics.median(seconds),
        "waiting_for_generation": sum(series["seconds/generate"][warm_up:]) / total,
        "idle_share": {role: 1 - busy for role, busy in share.items()},
        "gold_mean": gold,
        "gold_last": gold[-1] if gold else None,
        "score_mean_last": series["score_mean"][-1],
        "kl_sequence_last": series["kl_sequence"][-1],
        "lag_max": max(series["lag_max"]),
        "importance_mean": series["importance_mean"],
        "importance_capped": series["importance_capped"],
        "clip_fraction_mean": statistics.fmean(series["clip_fraction"]),
    }


def main() -> None:
    args = arguments()
    found: list[dict[str, Any]] = []
    print(f"{'seed':>4} {'staleness':>9} {'samples/s':>9} {'s/iter':>7} {'waiting':>8} "
          f"{'policy idle':>11} {'gold':>6} {'capped':>7}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            for staleness in args.staleness:
                path = Path(folder) / f"{seed}-{staleness}"
                one = figures(run(args, staleness, seed, path), args.warm_up)
                found.append({"seed": seed, "staleness": staleness, **one})
                gold = f"{one['gold_last']:>6.2f}" if one["gold_last"] is not None else f"{'':>6}"
                capped = statistics.fmean(one["importance_capped"] or [0.0])
                print(f"{seed:>4} {staleness:>9} {one['samples_per_second']:>9.2f} "
                      f"{one['seconds_an_iteration']:>7.2f} {one['waiting_for_generation']:>8.0%} "
                      f"{one['idle_share']['policy']:>11.0%} {gold} "
                      f"{capped:>7.2%}", flush=True)  # fmt: skip
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "sft", "reward_model")}
    path = write_result(
        args.out,
        "async_overlap",
        {
            "question": first_line(__doc__),
            "machine": machine(),
            "settings": settings,
            "runs": found,
        },
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()

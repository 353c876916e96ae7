"""The command line of both scripts, and what they write."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from benchmarks.common import RESULTS, first_line, machine, write_result
from benchmarks.gpu.checks import Bench, ViolatedError, run_checks
from benchmarks.gpu.facts import gpus, versions


def options(description: str | None, minutes: float) -> argparse.ArgumentParser:
    """Options of both scripts."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="what computes")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a dry run")
    parser.add_argument("--minutes", type=float, default=minutes, help="limit for all checks")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    return parser


def run(module: str, args: argparse.Namespace, question: str | None) -> int:
    """Run checks, print a line for each, write the JSON.

    Args:
        module: Import path of a module with the list `CHECKS`.
        args: From `options`.
        question: The script's docstring.

    Returns:
        How many checks failed.
    """
    began = time.monotonic()
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="rehearsal-gpu-") as folder:
        bench = Bench(args.device, args.quick, Path(folder))
        try:
            for outcome in run_checks(module, bench, args.minutes):
                print(outcome.line(), flush=True)
                outcomes.append(outcome)
        except ViolatedError as error:
            raise SystemExit(str(error)) from error
    counts = Counter(outcome.status for outcome in outcomes)
    found = {
        "question": first_line(question),
        "machine": machine(),
        "gpus": gpus(),
        "versions": versions(),
        "device": args.device,
        "quick": args.quick,
        "seconds": time.monotonic() - began,
        "failed": counts["failed"],
        "skipped": counts["skipped"],
        "passed": counts["passed"],
        "checks": [asdict(outcome) for outcome in outcomes],
    }
    path = write_result(args.out, f"gpu_{module.rpartition('.')[2]}", found)
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped in "
          f"{found['seconds']:.0f} s; written to {path}")  # fmt: skip
    return counts["failed"]

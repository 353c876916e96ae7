"""The kinds of input, and how many of each a full run makes.

Each kind is a module here with `cases(seed, count, folder)`, which yields `count` cases and may
write into `folder`, a new and empty one.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from fuzz.frame import Tally, judge

COUNTS: dict[str, int] = {
    "data_files": 500,
    "bases": 200,
    "configs": 1000,
    "checkpoints": 200,
    "exports": 200,
    "report_folders": 100,
    "state_folders": 1000,
    "reward_functions": 300,
    "templates": 100,
}


def run_kind(kind: str, seed: int, count: int, folder: Path) -> Tally:
    """Run `count` cases of one kind; equal seeds make equal cases."""
    tally = Tally(kind)
    for case in importlib.import_module(f"fuzz.{kind}").cases(seed, count, folder):
        tally.results.append(judge(case))
    return tally

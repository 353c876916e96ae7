"""`python -m fuzz [--seed N] [--kinds NAME ...] [--share F]`: run the hostile inputs, print faults.

Exit code 1 where there is a fault. Equal seeds make equal inputs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from fuzz.kinds import COUNTS, run_kind


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=sorted(COUNTS), default=sorted(COUNTS))
    parser.add_argument("--share", type=float, default=1.0, help="part of the full counts")
    arguments = parser.parse_args()
    faults = 0
    for kind in arguments.kinds:
        count = max(1, round(COUNTS[kind] * arguments.share))
        with tempfile.TemporaryDirectory(prefix=f"fuzz-{kind}-") as folder:
            tally = run_kind(kind, arguments.seed, count, Path(folder))
        tally.write(sys.stdout)
        sys.stdout.flush()
        faults += len(tally.faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

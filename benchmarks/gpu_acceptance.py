"""Does the whole product work on this machine with GPUs? Ten minutes, after `make setup-gpu`.

Runs the doctor, the recipe in the pocket world, PPO in bf16 and with CUDA graphs, engines
and trainers that take turns with the GPU's memory, rollouts next to raw vLLM, and with two GPUs
weights by NCCL and an engine that is killed in a transfer. What this machine cannot run is skipped,
with the reason.

`--device cpu --quick` is a dry run of the same checks on small sizes: minutes, and no figures.

The exit code is the number of failed checks. Attach the JSON that is written to --out to a report.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.gpu.command import options, run

MINUTES = 10.0


def main(arguments: Sequence[str]) -> int:
    args = options(__doc__, MINUTES).parse_args(arguments)
    return run("benchmarks.gpu.product.acceptance", args, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

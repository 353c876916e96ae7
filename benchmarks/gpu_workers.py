"""Does everything below Ray and vLLM work on this GPU: trainers, kernels, weights, an engine?

For a machine with one GPU and little else: Python, torch and transformers suffice; checks that need
deepspeed or peft are skipped without them. Under 8 minutes. The checks run one after the other in a
separate process; a check that hangs or crashes has failed, and the others continue.

`--device cpu --quick` runs the same checks on small sizes in seconds, without a GPU: a dry run,
whose times mean nothing.

The exit code is the number of failed checks. A JSON with all figures is written to --out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.gpu.command import options, run

MINUTES = 8.0


def main(arguments: Sequence[str]) -> int:
    args = options(__doc__, MINUTES).parse_args(arguments)
    return run("benchmarks.gpu.workers", args, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

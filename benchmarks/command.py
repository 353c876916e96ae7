"""The benchmarks by name: `rehearsal bench NAME ...`; each is `python -m benchmarks.NAME` too."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence

from orchestrator.process.command_exit import exit_code
from orchestrator.process.program import begin_verb, program

NAMES = {
    "rollout_throughput": "tokens/s of a run's engines on your model, beside raw vLLM",
    "ppo_step": "seconds of a PPO step by phase, and the share that is no work of a role's",
    "startup": "seconds from the command to the first optimizer step",
    "weight_sync": "seconds and bytes/s of a weight sync by transport and size",
    "trainer": "tokens/s of PPO updates by ZeRO stage, ranks and precision",
    "sft_throughput": "tokens/s of supervised steps, packed and padded",
    "async_overlap": "samples/s with generation ahead of training",
    "cluster_sim": "a step on a cluster of any size, simulated from measured speeds",
    "peers": "a PPO step beside TRL and beside plain vLLM with PyTorch",
    "gpu_workers": "checks of the workers on one GPU, without Ray",
    "gpu_acceptance": "checks of a GPU node in ten minutes, as a JSON file",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark on the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _run(options.name, options.arguments))


def _run(name: str, arguments: Sequence[str]) -> None:
    begin_verb(f"bench {name}")
    sys.argv = [f"benchmarks.{name}", *arguments]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)


def _parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {name:20}{purpose}" for name, purpose in NAMES.items())
    parser = argparse.ArgumentParser(
        prog=program("benchmarks.command"),
        description=f"Measure throughput on your models and cluster.\n\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", choices=sorted(NAMES), help="one of the above")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="its own; --help lists them"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""How long does a PPO step take next to other programs, for the same work?

The same randomly initialised checkpoints, prompts, lengths, minibatches, epochs and learning rates
for all sides; whole launches in turns (A B A B); every side's work is counted and must be equal.
Peers: `trl` as it is, `trl_without_collect` (its two garbage collections per step left out), and
`floor`, raw vLLM and plain PyTorch in one process.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.common import RESULTS, first_line, machine, print_table, write_result
from benchmarks.peers import shapes
from benchmarks.peers.environments import PEERS as INSTALLED
from benchmarks.peers.environments import contents, default_cache
from benchmarks.peers.figures import OURS, Turn, ratios, summary, work_of
from benchmarks.peers.sides import PEERS, Comparison, launch
from orchestrator.process.command_exit import exit_code
from orchestrator.process.program import program
from workers.errors import ConfigError

_STEPS = {"tiny": 20, "pocket": 8, "llama_70m": 3}
_HEADS = ("side", "s/step", "CPU s/step", "peak GiB", "sequences/s", "first step after s")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _compare(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("benchmarks.peers"), description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--shape", default="tiny", choices=list(shapes.SHAPES))
    parser.add_argument("--peers", default="trl,floor", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--repetitions", type=int, default=2, help="turns of each side")
    parser.add_argument("--steps", type=int, default=0, help="counted steps of a turn")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before them")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="ours")
    parser.add_argument("--peer-precision", choices=("fp32", "bf16"),
                        help="the peers' (bf16 of TRL: no fp32 weights); else ours")  # fmt: skip
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of a peer's torch")
    parser.add_argument("--passive-waits", action="store_true",
                        help="threads of all sides sleep while they wait")  # fmt: skip
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys of ours")
    parser.add_argument("--cache", type=Path, default=default_cache(),
                        help="folder of the peers' environments")  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    return parser


def _compare(options: argparse.Namespace) -> None:
    peers = _peers(options)
    sides = (OURS, *peers)
    shape, steps = shapes.SHAPES[options.shape], options.steps or _STEPS[options.shape]
    with tempfile.TemporaryDirectory() as scratch:
        settings = Comparison(
            shape=shape, inputs=Path(scratch) / "inputs", scratch=Path(scratch),
            cache=options.cache, steps=options.warm_up + steps, warm_up=options.warm_up,
            threads=options.threads,
            precisions={
                s: options.precision if s == OURS else options.peer_precision or options.precision
                for s in sides
            },
            environment={"OMP_WAIT_POLICY": "PASSIVE"} if options.passive_waits else {},
            keys=tuple(options.set),
        )  # fmt: skip
        shapes.make_inputs(settings.inputs, shape, 2 * settings.steps)
        turns: dict[str, list[Turn]] = {side: [] for side in sides}
        for number in range(options.repetitions):
            for side in sides:
                turns[side].append(launch(side, settings, number))
    _show(options, settings, turns)


def _peers(options: argparse.Namespace) -> list[str]:
    names = [name for name in options.peers.split(",") if name]
    for name in names:
        if name not in PEERS:
            raise ConfigError(
                f"no peer {name!r}", where="--peers", fix=f"choose of {', '.join(PEERS)}"
            )
    for flag in ("repetitions", "warm_up", "threads"):
        if getattr(options, flag) < 1:
            raise ConfigError(
                f"{getattr(options, flag)} is too few", where=f"--{flag.replace('_', '-')}",
                fix="give 1 or more",
            )  # fmt: skip
    return names


def _show(options: argparse.Namespace, settings: Comparison, turns: dict[str, list[Turn]]) -> None:
    summaries = {side: summary(each, settings.shape.sequences) for side, each in turns.items()}
    over = ratios(turns)
    installed = {PEERS[side][1] for side in turns if side != OURS} - {""}
    found: dict[str, object] = {
        "question": first_line(__doc__),
        "machine": machine(),
        "settings": {
            "shape": options.shape, **asdict(settings.shape), "steps": settings.steps,
            "warm_up": settings.warm_up, "threads_of_peers": settings.threads,
            "precisions": settings.precisions, "environment": settings.environment,
            "keys": settings.keys,
        },
        "environments": {name: contents(INSTALLED[name]) for name in sorted(installed)},
        "work_per_step": work_of(settings.shape),
        "medians": summaries,
        "ours_over": over,
        "turns": {side: [asdict(turn) for turn in each] for side, each in turns.items()},
    }  # fmt: skip
    path = write_result(options.out, f"peers_{options.shape}_{options.precision}", found)
    print_table(_HEADS, [
        [s, f"{m['step_seconds']:.3f}", f"{m['cpu_seconds']:.3f}", f"{m['peak_gib']:.2f}",
         f"{m['sequences_per_second']:.1f}", f"{m['first_step_after']:.1f}"]
        for s, m in summaries.items()
    ])  # fmt: skip
    for peer, figures in over.items():
        print(f"ours / {peer}: " + ", ".join(f"{n} {v:.2f}" for n, v in figures.items()))
    print(f"written to {path}")


if __name__ == "__main__":
    raise SystemExit(main())

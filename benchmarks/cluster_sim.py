"""What do the driver's loop and its modes give on clusters that are not at hand?

The real PPO loop with its scheduler, ledger, staleness checks and records, and the real role
groups, over simulated workers (`simulated_roles.py`): 16 to 1,024 engines, every response
log-normal in length and 5 % of them 20 times as long as the median. Throughput, idle shares and
staleness are of simulated time; the driver's seconds are real ones of its own process, less those
that the simulation took.

Modes: `synchronous` trains on a batch when all of it is there; `one-step` samples the next batch
meanwhile, and its weight updates wait for running calls; `in-flight` samples several batches ahead
and updates weights in the middle of sequences. Engines serve calls one after the other (`serial`),
or with `rollout.join_running` what comes joins what is running (`continuous`). The first and the
last iterations, in which the pipeline fills and drains, are left out of all figures.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import RESULTS, configuration, first_line, machine, print_table, write_result
from benchmarks.simulated_roles import PROMPT_TOKENS, Latency, Lengths, Mark, SimRoles
from orchestrator.config.schema import Config
from orchestrator.run_files.folder import RunFolder
from orchestrator.session.saves import Saves
from orchestrator.session.session import Session
from orchestrator.stages.ppo.loop import ppo
from orchestrator.supervision.lost_workers import Losses
from orchestrator.supervision.pending import Position
from orchestrator.telemetry.live import LiveView
from orchestrator.telemetry.recorder import Telemetry
from workers.data.records import Prompt
from workers.pocket.source import PocketSource

MODES = ("synchronous", "one-step", "in-flight")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", nargs="+", type=int, default=[16, 64, 256, 1024],
                        help="engines")  # fmt: skip
    parser.add_argument(
        "--modes", nargs="+", default=list(MODES), choices=MODES, help="of the loop"
    )
    parser.add_argument("--engines", nargs="+", default=["serial", "continuous"],
                        choices=("serial", "continuous"), help="what an engine does")  # fmt: skip
    parser.add_argument("--sequences", type=int, default=16, help="of an iteration, a worker")
    parser.add_argument("--staleness", type=int, default=6, help="iterations ahead, in-flight")
    parser.add_argument("--iterations", type=int, default=42, help="of each run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    return parser.parse_args()


class Prompts(PocketSource):
    """Prompts that cost the driver nothing to make; nobody can judge a text."""

    def prompts(self, split: str, start: int, count: int) -> list[Prompt]:
        return [Prompt(i, (1,) * PROMPT_TOKENS, "", i) for i in range(start, start + count)]

    def gold(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> None:
        return None


def loop(args: argparse.Namespace, mode: str, engine: str, workers: int) -> Config:
    """What a user would write to run the loop in this mode."""
    samples = 4
    prompts = args.sequences * workers // samples
    arguments = [
        "+experiment=pocket", f"algorithm.iterations={args.iterations}",
        f"algorithm.prompts_per_iteration={prompts}", f"algorithm.samples_per_prompt={samples}",
        f"algorithm.sequences_per_minibatch={prompts * samples}", "algorithm.evaluate_every=0",
        "rollout.parity_prompts=1", "rollout.parity_tokens=1", "rollout.max_response_tokens=8192",
        "trainer.micro_batch_tokens=65536", "run.checkpoint.every_steps=0",
    ]  # fmt: skip
    if mode == "one-step":
        arguments.append("algorithm.staleness=1")
    if mode == "in-flight":
        arguments += [f"algorithm.staleness={args.staleness}", "rollout.inflight_updates=true"]
    if mode != "synchronous" and engine == "continuous":
        arguments.append("rollout.join_running=true")
    return configuration(*arguments)


def model(folder: Path) -> dict[str, str]:
    """A folder that passes for every checkpoint; nothing is computed with it."""
    LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=1)
    ).save_pretrained(folder)  # fmt: skip
    return dict.fromkeys(("base", "sft", "reward_model"), str(folder))


def run(config: Config, roles: SimRoles, path: Path) -> float:
    """The stage `ppo`; returns the processor seconds of the driver."""
    folder = RunFolder(path / "run").create(overwrite=True)
    given, position = model(path / "model"), Position("ppo")
    with (
        Telemetry(folder, config.logger, {}, sinks=[]) as telemetry,
        LiveView("simulation", [], enabled=False, stream=StringIO()) as live,
    ):
        session = Session(
            config=config, folder=folder, source=Prompts(0, 0.5, 0.25), telemetry=telemetry,
            live=live, fleet=roles, position=position, started=time.monotonic(),
            checkpoints=given, saves=Saves(folder, config.run.checkpoint),
            losses=Losses(folder, position),
        )  # fmt: skip
        began, clock = time.process_time(), roles.world.clock
        ppo(session)
        return time.process_time() - began - clock.own_seconds


def measure(args: argparse.Namespace, mode: str, engine: str, workers: int) -> dict[str, Any]:
    config = loop(args, mode, engine, workers)
    sequences = args.iterations * args.sequences * workers
    roles = SimRoles(config, workers, max(1, workers // 8), sequences)
    with tempfile.TemporaryDirectory() as folder:
        driver = run(config, roles, Path(folder))
    world = roles.world
    first, last = steady(world.marks, args.staleness)
    seconds, sequences = last.now - first.now, last.trained - first.trained
    lags = world.lags
    return {
        "mode": mode,
        "engine": engine,
        "workers": workers,
        "simulated_seconds": seconds,
        "sequences": sequences,
        "sequences_per_second": sequences / seconds,
        "rollout_idle_share": 1 - (last.rollout_busy - first.rollout_busy) / seconds,
        "policy_idle_share": 1 - (last.policy_busy - first.policy_busy) / seconds,
        "staleness": {str(n): count / lags.total() for n, count in sorted(lags.items())},
        "mean_staleness": sum(n * count for n, count in lags.items()) / lags.total(),
        "driver_microseconds_per_sequence": driver / world.trained * 1e6,
    }


def steady(marks: Sequence[Mark], staleness: int) -> tuple[Mark, Mark]:
    """The iterations in which the pipeline neither fills nor drains.

    Batches that were asked for together come together, so work goes in bursts of as many
    iterations as may be under way: the window is a multiple of that.
    """
    under_way = staleness + 1
    bursts = (len(marks) - 2 * under_way) // under_way
    assert bursts > 0, "too few iterations"
    return marks[under_way], marks[under_way * (1 + bursts)]


def rows(found: Iterable[dict[str, Any]]) -> Iterable[list[str]]:
    base = {
        (f["engine"], f["workers"]): f["sequences_per_second"]
        for f in found
        if f["mode"] == "synchronous"
    }
    for f in found:
        speed = f["sequences_per_second"]
        over = speed / base.get((f["engine"], f["workers"]), float("nan"))
        yield [
            f["mode"], f["engine"], str(f["workers"]), f"{speed:,.1f}", f"{over:.2f}",
            f"{f['rollout_idle_share']:.0%}", f"{f['policy_idle_share']:.0%}",
            f"{f['mean_staleness']:.2f}",
            f"{f['driver_microseconds_per_sequence']:.0f}",
        ]  # fmt: skip


def main() -> None:
    args = arguments()
    measure(args, "synchronous", "serial", 16)  # imports and caches
    found = [
        measure(args, mode, engine, workers)
        for engine in args.engines
        for workers in args.workers
        for mode in args.modes
    ]
    path = write_result(
        args.out,
        "cluster_sim",
        {
            "question": first_line(__doc__),
            "machine": machine(),
            "settings": {k: v for k, v in vars(args).items() if k != "out"},
            "latency": asdict(Latency()),
            "lengths": asdict(Lengths()),
            "results": found,
        },
    )
    heads = ["mode", "engine", "workers", "seq/s", "x sync", "engines idle", "policy idle",
             "mean lag", "driver us/seq"]  # fmt: skip
    print_table(heads, rows(found))
    print(f"written to {path}")


if __name__ == "__main__":
    main()

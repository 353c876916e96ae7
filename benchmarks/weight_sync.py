"""How long does a weight sync take, and how far is it from a plain copy of the same bytes?

Through the run's own roles: DeepSpeed trainers on one side, a vLLM engine on the other, and
`orchestrator.roles.weight_sync.WeightSync` between them. `transfer` is what the engines wait for:
publishing, moving, checking and loading every weight. `probe` is the rest of the transaction:
tokens sampled, scored by the trainer, compared, and the engine admitted. `transport` is shared
memory alone, in one process: copied in with its checksum, and checked on the other side. `memcpy`
copies as many bytes once, between buffers that are mapped already, in the turn beside.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import (
    RESULTS,
    configuration,
    first_line,
    in_turns,
    machine,
    medians,
    print_table,
    write_result,
)
from orchestrator.cluster.ray_cluster import start_cluster
from orchestrator.config.cluster import RoleName
from orchestrator.config.schema import Config
from orchestrator.planning.placement import place_roles
from orchestrator.planning.worker_specs import rollout_spec, train_spec
from orchestrator.roles.fleet import Fleet
from orchestrator.roles.weight_sync import SyncReport, WeightSync
from orchestrator.supervision.pending import Position
from orchestrator.telemetry.recorder import Account
from workers.pocket.source import PocketSource
from workers.weights.packing import describe, make_offer
from workers.weights.transfer import WeightReceiver, WeightSender
from workers.weights.transport import Link

SIZES = {"13MB": (256, 4, 512), "550MB": (1024, 10, 10_752)}  # width, layers, vocabulary


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES),
                        help="bytes of float32 weights")  # fmt: skip
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2, 3], choices=(1, 2, 3),
                        help="ZeRO stages")  # fmt: skip
    parser.add_argument("--transports", nargs="+", default=["shm", "gloo"],
                        choices=("shm", "gloo"), help="how the bytes travel")  # fmt: skip
    parser.add_argument("--ranks", type=int, default=1, help="trainer ranks of the policy")
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each side")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    return parser.parse_args()


def make(folder: Path, size: str) -> int:
    """A Llama with random weights and the pocket world's tokenizer; returns its bytes."""
    width, layers, vocabulary = SIZES[size]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers,
            num_attention_heads=width // 64, intermediate_size=8 * width // 3 // 16 * 16,
            max_position_embeddings=128, tie_word_embeddings=True,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    PocketSource(0, 0.5, 0.25).tokenizer.save_pretrained(folder)
    return 4 * sum(p.numel() for p in model.parameters())


@contextmanager
def roles(config: Config) -> Iterator[Fleet]:
    """The policy's trainers and one engine."""
    wanted = {RoleName.policy, RoleName.rollout}
    layout = place_roles(config.cluster, wanted)
    with start_cluster(config.cluster, layout, 300.0) as cluster:
        fleet = Fleet(config, cluster, Position(), Account())
        fleet.bring_up(*wanted)
        yield fleet


def memcpy(nbytes: int) -> Callable[[], float]:
    source = torch.ones(nbytes, dtype=torch.uint8)
    target = torch.zeros_like(source)

    def copy() -> float:
        began = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - began

    return copy


def transport(nbytes: int) -> Callable[[], float]:
    """Shared memory alone, in eleven layers."""
    weights = [(f"layers.{i}.weight", torch.ones(nbytes // 44)) for i in range(11)]
    offer, link = make_offer(1, describe(weights), "shm"), Link(torch.device("cpu"), 60.0)
    sender, receiver = WeightSender(link), WeightReceiver(link)

    def move() -> float:
        began = time.perf_counter()
        receiver.receive(sender.send(offer, [weights]))
        return time.perf_counter() - began

    return move


class Syncing:
    """One transport between roles that stand."""

    def __init__(self, fleet: Fleet, config: Config, transport: str) -> None:
        prompts = PocketSource(0, 0.5, 0.25).prompts("heldout", 0, config.rollout.parity_prompts)
        rollout = replace(config.rollout, transport=transport)
        budget = config.trainer.micro_batch_tokens
        self.reports: list[SyncReport] = []
        self._sync = WeightSync(
            fleet.policy, fleet.rollout, rollout, [p.tokens for p in prompts], budget
        )

    def turn(self, version: Callable[[], int]) -> float:
        self.reports.append(self._sync.run(version()))
        return self.reports[-1].transfer_seconds

    def probes(self) -> list[float]:
        return [r.seconds - r.transfer_seconds for r in self.reports[1:]]


def measure(args: argparse.Namespace, fleet: Fleet, config: Config, size: str) -> dict[str, object]:
    """All transports of one size at one ZeRO stage, turn about with a plain copy."""
    versions = iter(range(1, 10_000))
    with tempfile.TemporaryDirectory() as folder:
        nbytes = make(Path(folder), size)
        loading = fleet.policy.load(
            train_spec(config, folder, config.algorithm.policy_optimizer, 10, threads=1)
        )
        fleet.rollout.restart(rollout_spec(config, folder, 2), 0).result()
        loading.result()
    sides = {name: Syncing(fleet, config, name) for name in args.transports}
    found = in_turns(
        {
            "memcpy": memcpy(nbytes),
            "transport shm": transport(nbytes),
            **{n: lambda s=side: s.turn(lambda: next(versions)) for n, side in sides.items()},
        },
        args.repetitions,
    )
    ratios = {
        name: medians({"r": [m / s for m, s in zip(found["memcpy"], found[name], strict=True)]})[
            "r"
        ]
        for name in found
        if name != "memcpy"
    }
    return {
        "bytes": nbytes,
        "seconds": found,
        "median_seconds": medians(found),
        "median_probe_seconds": medians({n: side.probes() for n, side in sides.items()}),
        "gigabytes_per_second": {n: nbytes / s / 1e9 for n, s in medians(found).items()},
        "median_of_memcpy": ratios,
        "parity_max_nats": {
            n: max(r.parity.max_difference for r in side.reports) for n, side in sides.items()
        },
    }


def rows(stage: int, size: str, found: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, seconds in found["median_seconds"].items():
        probe, parity = found["median_probe_seconds"], found["parity_max_nats"]
        yield [
            size, str(stage), name, f"{seconds * 1e3:.1f}",
            f"{found['gigabytes_per_second'][name]:.2f}",
            f"{found['median_of_memcpy'].get(name, 1):.2f}",
            f"{probe[name] * 1e3:.1f}" if name in probe else "",
            f"{parity[name]:.0e}" if name in parity else "",
        ]  # fmt: skip


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    results: dict[str, dict[str, object]] = {}
    table: list[list[str]] = []
    for stage in args.stages:
        config = configuration(
            "+experiment=pocket", f"trainer=zero{stage}",
            f"cluster.roles.policy.workers={args.ranks}",
            "rollout.max_concurrent_sequences=32", "rollout.kv_cache_mib=64",
        )  # fmt: skip
        with roles(config) as fleet:
            for size in args.sizes:
                found = measure(args, fleet, config, size)
                results[f"zero{stage} {size}"] = found
                table += rows(stage, size, found)
    path = write_result(
        args.out,
        "weight_sync",
        {
            "question": first_line(__doc__),
            "machine": machine(),
            "settings": {k: v for k, v in vars(args).items() if k != "out"},
            "results": results,
        },
    )
    heads = ["size", "ZeRO", "what", "ms", "GB/s", "of memcpy", "probe ms", "parity"]
    print_table(heads, table)
    print(f"written to {path}")


if __name__ == "__main__":
    main()

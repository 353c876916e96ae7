"""What do engines gain when waiting batches join the one that is being sampled?

The same batches through the Ray actor of the role `rollout`, one after the other and all asked for
at once with `rollout.join_running`, by turns. Answers of the random model end at very different
lengths, so without joining most places of the engine are empty while the longest answers of a batch
are drawn. Both sides must draw the same sequences.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.common import RESULTS, configuration, first_line, machine, write_result
from benchmarks.rollout_throughput.sides import VERSION, Ours
from orchestrator.cluster.ray_cluster import start_cluster
from orchestrator.config.cluster import RoleName
from orchestrator.planning.placement import place_roles
from orchestrator.planning.worker_specs import rollout_spec
from orchestrator.roles.interfaces import Rollouts
from workers.pocket.model import create_model
from workers.records.generation import GenerationRequest


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=first_line(__doc__))
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each side")
    parser.add_argument("--batches", type=int, default=6, help="of a turn")
    parser.add_argument("--sequences", type=int, default=16, help="sequences of a batch")
    parser.add_argument("--prompt", type=int, default=32, help="longest prompt, tokens")
    parser.add_argument("--response", type=int, default=480, help="longest response, tokens")
    parser.add_argument("--concurrent", type=int, default=16, help="sequences at once")
    parser.add_argument("--hidden", type=int, default=256, help="width of the model")
    parser.add_argument("--layers", type=int, default=4, help="layers of the model")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    return parser.parse_args()


EOS = 2


def make_requests(args: argparse.Namespace, turn: int) -> list[GenerationRequest]:
    """Prompts of 4 to `--prompt` tokens, one sequence each; others in the next turn."""
    rng = np.random.default_rng([7, turn])
    made: list[GenerationRequest] = []
    for n in range(args.sequences):
        length = int(np.clip(rng.lognormal(2.2, 0.6), 4, args.prompt))
        prompt = (1, *rng.integers(3, 90, size=length - 1).tolist())
        made.append(GenerationRequest(n, prompt, (n,), (1000 * turn + n,)))
    return made


def make_model(args: argparse.Namespace, folder: Path) -> None:
    """A random Llama over the pocket world's words whose answers end at very different lengths."""
    create_model(
        folder, hidden_size=args.hidden, layers=args.layers, heads=args.hidden // 64,
        kv_heads=args.hidden // 64, intermediate_size=args.hidden * 11 // 4,
        max_position_embeddings=args.prompt + args.response, tie_word_embeddings=True, seed=0,
    )  # fmt: skip


class Engine:
    """One engine that lets calls join."""

    def __init__(self, args: argparse.Namespace, model: Path) -> None:
        config = configuration(
            "rollout.join_running=true", "rollout.kv_cache_mib=96", "cluster.object_store_mib=128",
            f"rollout.max_prompt_tokens={args.prompt}",
            f"rollout.max_response_tokens={args.response}",
            f"rollout.max_concurrent_sequences={args.concurrent}",
        )  # fmt: skip
        layout = place_roles(config.cluster, [RoleName.rollout])
        self._cluster = start_cluster(config.cluster, layout, 120.0)
        ours = Ours(config, self._cluster, rollout_spec(config, str(model), EOS))
        self.rollout, self.sampling = ours.rollout, ours.sampling

    def close(self) -> None:
        self._cluster.close()

    def in_turn(self, batches: list[list[GenerationRequest]]) -> list[Rollouts]:
        return [self.rollout.generate(b, self.sampling, VERSION).result() for b in batches]

    def joined(self, batches: list[list[GenerationRequest]]) -> list[Rollouts]:
        asked = [self.rollout.generate(b, self.sampling, VERSION) for b in batches]
        return [each.result() for each in asked]


def numbered(args: argparse.Namespace, turn: int) -> list[list[GenerationRequest]]:
    """The batches of a turn; ids are unique in it."""
    return [
        [
            replace(r, ids=tuple(i + 10_000 * n for i in r.ids))
            for r in make_requests(args, turn * args.batches + n)
        ]
        for n in range(args.batches)
    ]


def lengths(found: list[Rollouts]) -> dict[int, int]:
    """Tokens of each response, by id."""
    return {
        int(i): int(n)
        for each in found
        for i, n in zip(each.summary.ids, each.summary.response_lengths, strict=True)
    }


def main() -> None:
    args = arguments()
    seconds: dict[str, list[float]] = {"in turn": [], "joined": []}
    same, tokens, longest = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        make_model(args, Path(folder))
        engine = Engine(args, Path(folder))
        sides = {"in turn": engine.in_turn, "joined": engine.joined}
        for turn in range(args.repetitions + 1):
            drawn = {}
            for name in sides if turn % 2 else reversed(sides):
                began = time.perf_counter()
                drawn[name] = lengths(sides[name](numbered(args, turn)))
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - began)
            same.append(drawn["in turn"] == drawn["joined"])
            tokens.append(sum(drawn["joined"].values()))
            longest.append(max(drawn["joined"].values()))
        engine.close()
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    found = {
        "question": first_line(__doc__), "machine": machine(),
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "seconds": seconds, "speedup": ratios, "same_lengths": same,
        "tokens_a_turn": tokens, "longest": longest,
    }  # fmt: skip
    for name, each in seconds.items():
        print(f"{name:<8} {statistics.median(each):6.2f} s a turn")
    print(f"joined is {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to "
          f"{max(ratios):.2f}); same lengths in {sum(same)} of {len(same)} turns")  # fmt: skip
    print(write_result(args.out, "joined_batches", found))


if __name__ == "__main__":
    main()

"""What does K-way DPO save next to the same rankings expanded into pairs?

One rank of the policy's trainer (PolicyWorker on the real ZeRO engine, as users run it) takes
optimizer steps on rankings of K = 4 to 9 completions. `k_way` gives each completion one forward
pass and compares all of them; `pairs` gives the trainer every pair as a ranking of two, as
trainers do that concatenate the better and the worse completion. Both go through the same planner
and budget, in turns (A B A B) in one process, and have the same loss, which is checked: without
ties, the mean over a ranking's pairs and then over rankings is the mean over all pairs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import ROOT, first_line, machine, print_table, write_result
from orchestrator.batching.training_batches import ranking_step
from workers.records.arrays import Ragged
from workers.records.processes import RankAddress
from workers.records.specs import GroupSpec, OptimizerSpec, PreferenceSpec, TrainModelSpec
from workers.records.training import Ranking, RankingStep
from workers.roles.policy import PolicyWorker

LOSS = PreferenceSpec("dpo", 0.1, 0.0, 0.0, False, "all", 0.0)
SIZES = range(4, 10)


@dataclass(frozen=True)
class Measured:
    """One optimizer step."""

    seconds: float
    cpu_seconds: float  # of this process
    loss: float


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each side")
    parser.add_argument("--rankings", type=int, default=8, help="of one optimizer step")
    parser.add_argument("--prompt-tokens", type=int, default=24, help="of each prompt")
    parser.add_argument("--tokens", type=int, default=24, help="median of a completion")
    parser.add_argument("--budget", type=int, default=4096, help="tokens of a micro-batch")
    parser.add_argument("--hidden", type=int, default=128, help="width of the model")
    parser.add_argument("--layers", type=int, default=4, help="layers of the model")
    parser.add_argument("--vocabulary", type=int, default=512, help="of the model")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of results")
    return parser.parse_args()


def make_rankings(args: argparse.Namespace, size: int) -> list[Ranking]:
    """Rankings of random tokens without ties, with a reference near the policy."""
    rng = np.random.default_rng(size)
    found: list[Ranking] = []
    for number in range(args.rankings):
        prompt = rng.integers(0, args.vocabulary, args.prompt_tokens)
        lengths = np.maximum(2, np.exp(rng.normal(np.log(args.tokens), 0.4, size))).astype(int)
        rows = [[*prompt, *rng.integers(0, args.vocabulary, n)] for n in lengths]
        reference = (-np.log(args.vocabulary) * lengths).astype(np.float32)
        ranks = 1 + rng.permutation(size).astype(np.int64)
        sequences = Ragged.from_rows(rows, np.int32)
        found.append(Ranking(number, sequences, ranks, prompt_length=len(prompt),
                             reference=reference))  # fmt: skip
    return found


def expanded(rankings: list[Ranking]) -> list[Ranking]:
    """Every pair as a ranking of two."""
    pairs: list[Ranking] = []
    for ranking in rankings:
        assert ranking.reference is not None
        better, worse = (ranking.ranks[:, None] < ranking.ranks[None, :]).nonzero()
        pairs += [
            Ranking(
                ranking.prompt_id, ranking.sequences.select(rows), np.array([1, 2]),
                prompt_length=ranking.prompt_length, reference=ranking.reference[rows],
            )
            for rows in np.stack([better, worse], axis=1)
        ]  # fmt: skip
    return pairs


def make_policy(args: argparse.Namespace, folder: Path) -> PolicyWorker:
    """A Llama with random weights on one rank."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=args.vocabulary, hidden_size=args.hidden, num_hidden_layers=args.layers,
            num_attention_heads=args.hidden // 32, num_key_value_heads=args.hidden // 32,
            intermediate_size=8 * args.hidden // 3 // 16 * 16, max_position_embeddings=512,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    worker = PolicyWorker(0)
    worker.join(
        RankAddress(0, 1, *worker.address()),
        GroupSpec(1, "float32", "cpu", args.threads, 300.0, 64 << 20, 0),
    )
    optimizer = OptimizerSpec(1e-12, (0.9, 0.95), 1e-5, 0.0, 1.0, "constant", 0, 0.1, 1)
    worker.load(TrainModelSpec(str(folder), optimizer, packed=True))
    return worker


def timed(worker: PolicyWorker, step: RankingStep) -> Measured:
    clock, cpu = time.perf_counter(), time.process_time()
    loss = worker.train_preferences(step, LOSS).loss
    return Measured(time.perf_counter() - clock, time.process_time() - cpu, loss)


def compare(args: argparse.Namespace, worker: PolicyWorker, size: int) -> dict[str, list[Measured]]:
    """A B A B, after one turn each that is not counted."""
    rankings = make_rankings(args, size)
    sides = {"k_way": rankings, "pairs": expanded(rankings)}
    steps = {n: ranking_step(each, 1, args.budget, packed=True)[0] for n, each in sides.items()}
    turns = [
        {name: timed(worker, step) for name, step in steps.items()}
        for _ in range(1 + args.repetitions)
    ][1:]
    found = {name: [turn[name] for turn in turns] for name in sides}
    losses = [m.loss for each in found.values() for m in each]
    if max(losses) - min(losses) > 1e-5:
        raise SystemExit(f"K = {size}: the losses of the sides differ: {losses}")
    return found


def ratio(found: dict[str, list[Measured]], field: str) -> float:
    """Median of the ratios of neighbouring turns."""
    turns = zip(found["k_way"], found["pairs"], strict=True)
    return statistics.median([getattr(a, field) / getattr(b, field) for a, b in turns])


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        worker = make_policy(args, Path(folder))
        found = {size: compare(args, worker, size) for size in SIZES}
    fields = ("seconds", "cpu_seconds")
    ratios = {k: {f: ratio(each, f) for f in fields} for k, each in found.items()}
    medians = {
        k: {
            name: {f: statistics.median([getattr(m, f) for m in turns]) for f in fields}
            for name, turns in each.items()
        }
        for k, each in found.items()
    }  # fmt: skip
    path = write_result(
        args.out,
        "dpo_pairs",
        {
            "question": first_line(__doc__),
            "machine": machine(),
            "settings": {k: v for k, v in vars(args).items() if k != "out"},
            "ratios": ratios,
            "medians": medians,
            "turns": {
                k: {name: [asdict(m) for m in turns] for name, turns in each.items()}
                for k, each in found.items()
            },
        },
    )
    print_table(
        ["K", "K-way ms", "pairs ms", "K-way CPU ms", "pairs CPU ms", "time", "CPU"],
        [
            [str(k), *(f"{each[name][f] * 1e3:.0f}" for f in fields
                       for name in ("k_way", "pairs")),
             f"{ratios[k]['seconds']:.2f}", f"{ratios[k]['cpu_seconds']:.2f}"]
            for k, each in medians.items()
        ],
    )  # fmt: skip
    print(f"written to {path}")


if __name__ == "__main__":
    main()

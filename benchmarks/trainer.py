"""How fast is a PPO step of our policy's trainer, and what do log-probabilities cost in memory?

One rank of the trainer (PolicyWorker on the real ZeRO engine, as users run it) against the loop
that everybody would write, on the same small Llama and the same sequences: log-normal lengths of
which some are many times longer. The sides take turns in one process, so that noise of the machine
meets all of them. Only Ray's transport between driver and worker is left out.

- packed: ours, sequences end to end (trainer.packing=auto)
- padded: ours, padded rows sorted by length (trainer.packing=off), the same planner and budget
- arrival: ours, padded rows in the order in which they came, the same budget
- plain: transformers, AdamW and a loop, over the micro-batches of `padded`

Memory is the resident peak of a process of its own for each case: log-probabilities and their
backward pass under a vocabulary of 151,936, the same number of tokens in 1, 4 and 16 sequences.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import RESULTS, ROOT, first_line, machine, write_result
from orchestrator.batching import training_batches
from workers.models.forward import ModelPasses
from workers.models.padding import pad_rows, response_cells
from workers.records.arrays import Ragged
from workers.records.processes import RankAddress
from workers.records.specs import GroupSpec, OptimizerSpec, PolicyLossSpec, TrainModelSpec
from workers.records.training import ExperienceBatch, PolicyStep, StepWork, Work
from workers.roles.policy import PolicyWorker

RATE, BETAS, EPS, CLIP = 1e-5, (0.9, 0.95), 1e-5, 1.0
LOSS = PolicyLossSpec(clip=0.2, temperature=1.0, advantage_mean=0.0, advantage_std=1.0)
LARGE_VOCABULARY = 151_936  # Qwen 2.5's
SEQUENCES = (1, 4, 16)
MIB = 1 << 20


@dataclass(frozen=True)
class Measured:
    """One turn of one side: one optimizer step."""

    seconds: float
    cpu_seconds: float  # of this process: what other processes do weighs less
    loss: float


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=first_line(__doc__))
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each side")
    parser.add_argument("--sequences", type=int, default=96, help="of one optimizer step")
    parser.add_argument("--median", type=int, default=40, help="median length in tokens")
    parser.add_argument("--spread", type=float, default=0.5, help="of the logarithm of lengths")
    parser.add_argument("--long-share", type=float, default=0.05, help="share of long sequences")
    parser.add_argument("--long-times", type=int, default=20, help="how much longer they are")
    parser.add_argument("--budget", type=int, default=4096, help="tokens of a micro-batch")
    parser.add_argument("--zero", type=int, default=1, choices=(1, 2, 3), help="ZeRO stage")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of all sides")
    parser.add_argument("--hidden", type=int, default=256, help="width of the model")
    parser.add_argument("--layers", type=int, default=4, help="layers of the model")
    parser.add_argument("--vocabulary", type=int, default=4096, help="of the model")
    parser.add_argument("--memory-tokens", type=int, default=1024, help="tokens under the large "
                        "vocabulary")  # fmt: skip
    parser.add_argument("--logits-mib", type=int, default=64, help="trainer.logits_mib there")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    parser.add_argument("--one-peak", nargs=2, type=int, metavar=("SEQUENCES", "MIB"),
                        help=argparse.SUPPRESS)  # fmt: skip
    return parser.parse_args()


def make_experience(args: argparse.Namespace) -> ExperienceBatch:
    """Sequences of random tokens, a quarter of each its prompt."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(np.log(args.median), args.spread, args.sequences))
    long = rng.permutation(args.sequences)[: round(args.long_share * args.sequences)]
    lengths[long] = args.median * args.long_times
    lengths = np.maximum(lengths.astype(np.int64), 4)
    rows = [rng.integers(0, args.vocabulary, n) for n in lengths]
    prompts = lengths // 4
    offsets = np.concatenate([[0], (lengths - prompts).cumsum()])
    flat = np.full(offsets[-1], -np.log(args.vocabulary), np.float32)
    field = Ragged(flat, offsets)
    advantages = Ragged(rng.normal(size=offsets[-1]).astype(np.float32), offsets)
    return ExperienceBatch(
        np.arange(args.sequences), Ragged.from_rows(rows, np.int32), prompts, field, field,
        advantages, field, field,
    )  # fmt: skip


def planned(args: argparse.Namespace, e: ExperienceBatch, *, packed: bool) -> StepWork:
    """The step as the driver plans it for one rank."""
    plan = training_batches.StepPlan(1, args.budget, len(e.ids), 1, (0,), packed=packed)
    lengths = e.tokens.lengths
    ((step,),) = training_batches.critic_steps(e.ids, lengths - e.prompt_lengths, lengths, plan)
    return step


def in_arrival_order(args: argparse.Namespace, e: ExperienceBatch) -> StepWork:
    """Padded micro-batches within the budget, of neighbours."""
    groups: list[list[int]] = [[]]
    for i, length in enumerate(e.tokens.lengths.tolist()):
        longest = max([length, *(int(e.tokens.lengths[j]) for j in groups[-1])])
        if groups[-1] and (len(groups[-1]) + 1) * longest > args.budget:
            groups.append([])
        groups[-1].append(i)
    work = Work(tuple(np.asarray(g, np.int64) for g in groups))
    return StepWork(work, len(e.advantages.values), len(e.ids))


def passed_tokens(e: ExperienceBatch, step: StepWork, *, packed: bool) -> int:
    """Tokens that go through the model, padding included."""
    lengths = [e.tokens.lengths[ids] for ids in step.work.micro_batches]
    return int(sum(part.sum() if packed else len(part) * part.max() for part in lengths))


class Ours:
    """The policy's trainer, one rank."""

    def __init__(
        self, args: argparse.Namespace, model: Path, e: ExperienceBatch, step: StepWork,
        *, packed: bool,
    ) -> None:  # fmt: skip
        self.experience, self.step = e, PolicyStep(step)
        self.worker = PolicyWorker(0)
        where = RankAddress(0, 1, *self.worker.address())
        self.worker.join(
            where, GroupSpec(args.zero, "float32", "cpu", args.threads, 300.0, 64 << 20, 0)
        )
        optimizer = OptimizerSpec(RATE, BETAS, EPS, 0.0, CLIP, "constant", 0, 0.1, 1)
        self.worker.load(TrainModelSpec(str(model), optimizer, packed=packed))

    def turn(self) -> float:
        (stats,) = self.worker.update([self.step], [self.experience], LOSS)
        return stats.loss


class Plain:
    """The loop of every tutorial, over padded batches that were made beforehand."""

    def __init__(self, model: Path, e: ExperienceBatch, step: StepWork) -> None:
        self.batches = [plain_batch(e, ids) for ids in step.work.micro_batches]
        self.tokens = step.tokens
        self.model = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True
        )

    def turn(self) -> float:
        total = 0.0
        for ids, mask, responses, old, advantages in self.batches:
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
            ratio = (logprobs[responses] - old).exp()
            clipped = ratio.clamp(1 - LOSS.clip, 1 + LOSS.clip)
            loss = torch.maximum(-advantages * ratio, -advantages * clipped).sum() / self.tokens
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


def plain_batch(e: ExperienceBatch, ids: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Token ids, attention mask, which predictions are of responses, old numbers, advantages."""
    rows = e.tokens.select(ids)
    width = int(rows.lengths.max())
    tokens = torch.zeros(len(ids), width, dtype=torch.int64)
    for i, row in enumerate(rows.rows()):
        tokens[i, : len(row)] = torch.tensor(row)
    at, ends = torch.arange(width)[None], torch.tensor(rows.lengths)[:, None]
    starts = torch.tensor(e.prompt_lengths[ids])[:, None]
    responses = ((at >= starts) & (at < ends))[:, 1:]
    old, advantages = (torch.tensor(f.select(ids).values) for f in (e.old_logprobs, e.advantages))
    return tokens, (at < ends).long(), responses, old, advantages


def timed(turn: Callable[[], float]) -> Measured:
    clock, cpu = time.perf_counter(), time.process_time()
    loss = turn()
    return Measured(time.perf_counter() - clock, time.process_time() - cpu, loss)


def take_turns(
    sides: dict[str, Callable[[], float]], repetitions: int
) -> list[dict[str, Measured]]:
    """A B C A B C ..., after one turn each that is not counted."""
    for turn in sides.values():
        turn()
    return [{name: timed(turn) for name, turn in sides.items()} for _ in range(repetitions)]


def ratios(turns: Sequence[dict[str, Measured]], fast: str, slow: str) -> dict[str, float]:
    """How many times the tokens per second of `slow` does `fast` have? Medians of pairs."""
    return {
        "by_clock": statistics.median(t[slow].seconds / t[fast].seconds for t in turns),
        "by_cpu_seconds": statistics.median(
            t[slow].cpu_seconds / t[fast].cpu_seconds for t in turns
        ),
    }


def measure_speed(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocabulary, hidden_size=args.hidden, num_hidden_layers=args.layers,
        intermediate_size=3 * args.hidden, num_attention_heads=max(1, args.hidden // 64),
        num_key_value_heads=max(1, args.hidden // 64), max_position_embeddings=16384,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    e = make_experience(args)
    steps = {name: planned(args, e, packed=name == "packed") for name in ("packed", "padded")}
    steps["arrival"] = in_arrival_order(args, e)
    sides = {
        name: Ours(args, folder, e, step, packed=name == "packed").turn
        for name, step in steps.items()
    }
    sides["plain"] = Plain(folder, e, steps["padded"]).turn
    turns = take_turns(sides, args.repetitions)
    tokens = len(e.tokens.values)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": tokens,
        "longest": int(e.tokens.lengths.max()),
        "micro_batches": {n: len(s.work.micro_batches) for n, s in steps.items()},
        "tokens_with_padding": {
            n: passed_tokens(e, s, packed=n == "packed") for n, s in steps.items()
        },
        "median_tokens_per_cpu_second": {
            name: tokens / statistics.median(t[name].cpu_seconds for t in turns) for name in sides
        },
        "padded_over_plain": ratios(turns, "padded", "plain"),
        "packed_over_plain": ratios(turns, "packed", "plain"),
        "packed_over_padded": ratios(turns, "packed", "padded"),
        "packed_over_arrival": ratios(turns, "packed", "arrival"),
        "largest_loss_difference": max(
            abs(t[name].loss - t["plain"].loss) for t in turns for name in sides
        ),
        "turns": [{name: asdict(m) for name, m in t.items()} for t in turns],
    }


def one_peak(args: argparse.Namespace) -> dict[str, float]:
    """In a process of its own: what log-probabilities and their gradient add to it, MiB."""
    sequences, limit = args.one_peak
    torch.set_num_threads(args.threads)
    config = LlamaConfig(
        vocab_size=LARGE_VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    passes = ModelPasses(LlamaForCausalLM(config), logits_bytes=limit * MIB)
    rng = np.random.default_rng(0)
    length = args.memory_tokens // sequences
    tokens = rng.integers(0, LARGE_VOCABULARY, (sequences, length))
    rows = pad_rows(Ragged.from_rows(list(tokens), np.int32))
    cells = response_cells(rows, np.ones(sequences, np.int64))
    before, began = psutil.Process().memory_info().rss, time.process_time()
    logprobs, _ = passes.logprobs(rows, cells, with_entropy=True)
    logprobs.mean().backward()
    # Not getrusage's: what the parent held when it started this process counts there.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return {"added_mib": (peak - before) / MIB, "cpu_seconds": time.process_time() - began}


def measure_memory(args: argparse.Namespace) -> dict[str, object]:
    def peak(sequences: int, limit: int) -> dict[str, float]:
        command = [
            sys.executable, "-m", "benchmarks.trainer", "--one-peak", str(sequences), str(limit),
            f"--memory-tokens={args.memory_tokens}", f"--threads={args.threads}",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    chunked = {n: peak(n, args.logits_mib) for n in SEQUENCES}
    at_once = {n: peak(n, 1 << 20) for n in SEQUENCES}  # a limit that is never reached
    added = [p["added_mib"] for p in chunked.values()]
    return {
        "vocabulary": LARGE_VOCABULARY,
        "chunked": chunked,
        "at_once": at_once,
        "chunked_largest_over_smallest": max(added) / min(added),
    }


def show_speed(speed: dict) -> None:
    print(f"{'side':<8} {'tokens/CPU s':>13} {'passes':>7} {'with padding':>13}")
    for name, rate in speed["median_tokens_per_cpu_second"].items():
        own = "padded" if name == "plain" else name
        print(f"{name:<8} {rate:>13,.0f} {speed['micro_batches'][own]:>7} "
              f"{speed['tokens_with_padding'][own]:>13,}")  # fmt: skip
    for name in ("padded_over_plain", "packed_over_plain", "packed_over_padded",
                 "packed_over_arrival"):  # fmt: skip
        by = speed[name]
        print(f"{name:<20} {by['by_cpu_seconds']:.2f} by CPU seconds, {by['by_clock']:.2f} by the "
              "clock")  # fmt: skip
    print(f"largest difference of losses {speed['largest_loss_difference']:.1e}")


def show_memory(memory: dict) -> None:
    print(f"{'sequences':>9} {'chunked MiB':>12} {'at once MiB':>12} {'CPU s':>7} {'CPU s':>7}")
    for n, chunked in memory["chunked"].items():
        once = memory["at_once"][n]
        print(f"{n:>9} {chunked['added_mib']:>12,.0f} {once['added_mib']:>12,.0f} "
              f"{chunked['cpu_seconds']:>7.1f} {once['cpu_seconds']:>7.1f}")  # fmt: skip


def main() -> None:
    args = arguments()
    if args.one_peak:
        print(json.dumps(one_peak(args)))
        return
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        speed = measure_speed(args, Path(folder))
    show_speed(speed)
    memory = measure_memory(args)
    show_memory(memory)
    kept = {k: v for k, v in vars(args).items() if k not in ("out", "one_peak")}
    found = {
        "question": first_line(__doc__),
        "machine": machine(),
        "settings": kept,
        "speed": speed,
        "memory": memory,
    }
    path = write_result(args.out, "trainer", found)
    print(f"written to {path}")


if __name__ == "__main__":
    main()

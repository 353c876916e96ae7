"""How fast is our SFT trainer next to the PyTorch loop that everybody would write?

Both train the same small Llama on GSM8K (question -> answer) with the same rows, micro-batches,
padding and AdamW, turn about in one process, so that noise of the machine meets both. Ours is what
the stage `sft` runs on one rank: data source, batch planning, PolicyWorker on the real ZeRO engine;
only Ray's transport between driver and worker is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from benchmarks.common import DATA, RESULTS, first_line, machine, make_model, require, write_result
from orchestrator.batching import training_batches
from workers.data.files import FileSource
from workers.data.tokenize.data_sets import DataSet, Feeding, Rendering, SetKind
from workers.records.processes import RankAddress
from workers.records.specs import GroupSpec, OptimizerSpec, TrainModelSpec
from workers.records.training import SupervisedStep, TokenBatch
from workers.roles.policy import PolicyWorker

RATE, BETAS, EPS, CLIP = 1e-3, (0.9, 0.95), 1e-5, 1.0
VALIDATION_ROWS = 64


@dataclass(frozen=True)
class Measured:
    """One turn of one side."""

    seconds: float
    cpu_seconds: float  # of all threads of this process: what other processes do weighs less
    tokens: int  # prompt and response, without padding
    losses: tuple[float, ...]  # nats per response token, one a step

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


class Clock:
    """Wall-clock and processor seconds since it was made."""

    def __init__(self) -> None:
        self.began, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.began, time.process_time() - self.cpu


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=first_line(__doc__))
    parser.add_argument("--data", type=Path, default=DATA / "gsm8k_train.jsonl",
                        help="GSM8K's training questions (JSONL)")  # fmt: skip
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each side")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of a turn")
    parser.add_argument("--rows", type=int, default=16, help="demonstrations of a step")
    parser.add_argument("--budget", type=int, default=2048, help="padded tokens of a micro-batch")
    parser.add_argument("--zero", type=int, default=1, choices=(1, 2, 3), help="ZeRO stage")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of both sides")
    parser.add_argument("--hidden", type=int, default=256, help="width of the model")
    parser.add_argument("--layers", type=int, default=4, help="layers of the model")
    parser.add_argument("--vocabulary", type=int, default=4096, help="tokens of the BPE")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    return parser.parse_args()


def data_source(model: Path, data: Path) -> FileSource:
    """GSM8K as bare text: question, then answer."""
    columns = {"prompt": "question", "completion": "answer"}
    questions = DataSet("gsm8k", SetKind.demonstrations, str(data), columns=columns)
    return FileSource([questions], Rendering(str(model), 512, 512), Feeding())


def read(source: FileSource, args: argparse.Namespace, step: int) -> TokenBatch:
    return source.demonstrations("train", step * args.rows, args.rows)


class Ours:
    """The stage `sft` on one rank."""

    def __init__(self, args: argparse.Namespace, source: FileSource, model: Path) -> None:
        self.args, self.source, self.taken = args, source, 0
        self.worker = PolicyWorker(0)
        where = RankAddress(0, 1, *self.worker.address())
        group = GroupSpec(args.zero, "float32", "cpu", args.threads, 300.0, 64 << 20, 0)
        self.worker.join(where, group)
        optimizer = OptimizerSpec(RATE, BETAS, EPS, 0.0, CLIP, "constant", 0, 0.1, 1)
        self.worker.load(TrainModelSpec(str(model), optimizer))

    def turn(self) -> Measured:
        losses, tokens, clock = [], 0, Clock()
        for _ in range(self.args.steps):
            batch = read(self.source, self.args, self.taken)
            (share,) = training_batches.supervised_step(batch, 1, self.args.budget)
            losses.append(self.worker.train_supervised(share).loss)
            tokens += len(batch.tokens.values)
            self.taken += 1
        return Measured(*clock.read(), tokens, tuple(losses))

    def validation_loss(self) -> float:
        heldout = self.source.demonstrations("heldout", 0, VALIDATION_ROWS)
        (share,) = training_batches.supervised_step(heldout, 1, self.args.budget)
        loss = self.worker.evaluate_supervised(share)
        return loss.nll / loss.tokens


class Plain:
    """The loop of every tutorial, over batches that were made beforehand."""

    def __init__(self, args: argparse.Namespace, source: FileSource, model: Path) -> None:
        self.args, self.source, self.taken = args, source, 0
        self.model = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True
        )

    def turn(self) -> Measured:
        batches = [read(self.source, self.args, self.taken + i) for i in range(self.args.steps)]
        shares = [training_batches.supervised_step(b, 1, self.args.budget)[0] for b in batches]
        steps = [([padded(m) for m in s.micro_batches], s.tokens) for s in shares]
        self.taken += self.args.steps
        clock = Clock()
        losses = tuple(self.step(*step) for step in steps)
        return Measured(*clock.read(), sum(len(b.tokens.values) for b in batches), losses)

    def step(self, micro_batches: Sequence[tuple[torch.Tensor, ...]], tokens: int) -> float:
        total = 0.0
        for ids, mask, labels in micro_batches:
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            loss = functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
            )
            loss = loss / tokens
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


def padded(batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask, and labels with -100 at all that is no response."""
    width = int(batch.tokens.lengths.max())
    ids = torch.zeros(len(batch), width, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (row, targets) in enumerate(zip(batch.tokens.rows(), batch.targets.rows(), strict=True)):
        n = len(row)
        ids[i, :n], mask[i, :n] = torch.tensor(row), 1
        labels[i, :n] = torch.where(torch.tensor(targets), ids[i, :n], -100)
    return ids, mask, labels


def count_responses(source: FileSource, args: argparse.Namespace) -> tuple[int, int]:
    """Targets of the first step, as planned and by encoding the answers of its questions again."""
    batch = read(source, args, 0)
    share: SupervisedStep = training_batches.supervised_step(batch, 1, args.budget)[0]
    rows = [json.loads(line) for line in args.data.read_text(encoding="utf-8").splitlines()]
    answers = {r["question"]: r["answer"] for r in rows}
    expected = 0
    for tokens, targets in zip(batch.tokens.rows(), batch.targets.rows(), strict=True):
        question = source.detokenize(tokens[~targets.astype(bool)])
        encoded = source.tokenizer.encode(answers[question], add_special_tokens=False)
        expected += len(encoded) + 1  # the end token
    return share.tokens, expected


def take_turns(sides: Sequence[Callable[[], Measured]], repetitions: int) -> list[list[Measured]]:
    """A B A B ..., after one turn each that is not counted."""
    for side in sides:
        side()
    return [[side() for side in sides] for _ in range(repetitions)]


def report(pairs: list[list[Measured]]) -> dict[str, object]:
    speeds = [[m.tokens_per_second for m in side] for side in zip(*pairs, strict=True)]
    ratios = [ours.tokens_per_second / plain.tokens_per_second for ours, plain in pairs]
    cpu = [plain.cpu_seconds / ours.cpu_seconds for ours, plain in pairs]
    return {
        "tokens_per_second": {"ours": speeds[0], "plain": speeds[1]},
        "median_tokens_per_second": {
            "ours": statistics.median(speeds[0]), "plain": statistics.median(speeds[1]),
        },
        "ours_over_plain": ratios,
        "median_ours_over_plain": statistics.median(ratios),
        "median_ours_over_plain_by_cpu_seconds": statistics.median(cpu),
        "largest_loss_difference": max(
            abs(a - b) for o, p in pairs for a, b in zip(o.losses, p.losses, strict=True)
        ),
    }  # fmt: skip


def main() -> None:
    args = arguments()
    require(args.data)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        model, heads = Path(folder) / "model", args.hidden // 64
        make_model(model, args.data, [
            f"--hidden-size={args.hidden}", f"--layers={args.layers}", f"--heads={heads}",
            f"--vocabulary={args.vocabulary}",
        ])  # fmt: skip
        source = data_source(model, args.data)
        ours, plain = Ours(args, source, model), Plain(args, source, model)
        before = ours.validation_loss()
        pairs = take_turns([ours.turn, plain.turn], args.repetitions)
        counted, expected = count_responses(source, args)
        found = {
            "question": first_line(__doc__),
            "machine": machine(),
            "settings": {
                **{k: v for k, v in vars(args).items() if k not in ("data", "out")},
                "parameters": sum(p.numel() for p in plain.model.parameters()),
            },
            **report(pairs),
            "validation_loss": {"before": before, "after": ours.validation_loss()},
            "response_tokens_of_first_step": {"counted": counted, "encoded_anew": expected},
            "pairs": [[asdict(m) for m in pair] for pair in pairs],
        }
    path = write_result(args.out, "sft_throughput", found)
    print(f"{'turn':>4} {'ours':>10} {'plain':>10} {'ratio':>7}   (tokens/s)")
    for turn, (a, b) in enumerate(pairs):
        speeds = a.tokens_per_second, b.tokens_per_second
        print(f"{turn:>4} {speeds[0]:>10,.0f} {speeds[1]:>10,.0f} {speeds[0] / speeds[1]:>7.3f}")
    cpu = found["median_ours_over_plain_by_cpu_seconds"]
    print(f"median of the ratios {found['median_ours_over_plain']:.3f}, by CPU seconds {cpu:.3f}")
    print(f"largest difference of losses {found['largest_loss_difference']:.1e} nats")
    print(f"held-out loss {before:.3f} -> {found['validation_loss']['after']:.3f} nats per token")
    print(f"response tokens of the first step: {counted} counted, {expected} encoded again")
    print(f"written to {path}")


if __name__ == "__main__":
    main()

"""How fast do our rollout engines generate next to bare vLLM and next to transformers?

Ours is what a run does: prompts from the driver through the Ray actors of the role `rollout`, in
vLLM engines with versions, seeds and log-probabilities, back as records in the object store. Bare
vLLM is `LLM.generate` in a process of its own with the same prompts, sampling parameters, seeds and
process settings. Batched transformers is `model.generate` over left-padded batches, as tutorials do
it. All sides take turns (A B C A B C ...), so that noise of the machine meets all of them.

The mix is heavy-tailed: a few prompts may answer at length, most stop early.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.common import ROOT, machine, write_result
from orchestrator.cluster.ray_cluster import start_cluster
from orchestrator.config.cluster import ClusterConfig, RoleName, RoleResources, RolesConfig
from orchestrator.config.engines import RolloutConfig
from orchestrator.config.schema import Config
from orchestrator.planning.placement import place_roles
from orchestrator.planning.worker_specs import rollout_spec
from orchestrator.roles.fleet import Fleet
from orchestrator.supervision.pending import Position
from orchestrator.telemetry.role_time import Account
from workers.pocket.model import create_model
from workers.records.generation import Delivery, GenerationRequest, Sampling
from workers.records.specs import RolloutSpec
from workers.roles.rollout import engine_environment

EOS = 2
VERSION = 1


@dataclass(frozen=True)
class Turn:
    """One generation of all prompts."""

    tokens: int  # of responses
    seconds: float
    cpu_seconds: float = 0.0  # of the engine processes: what others do on the machine weighs less

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Case:
    """What is varied."""

    engines: int
    samples: int
    prefix_caching: bool
    stream: int = 0
    join: bool = False

    def __str__(self) -> str:
        caching = "on" if self.prefix_caching else "off"
        return f"n={self.engines} K={self.samples} prefix={caching} stream={self.stream}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each side")
    parser.add_argument("--sequences", type=int, default=64, help="sequences of a turn")
    parser.add_argument("--prompt", type=int, default=32, help="longest prompt, tokens")
    parser.add_argument("--response", type=int, default=96, help="longest response, tokens")
    parser.add_argument("--concurrent", type=int, default=32, help="sequences at once, an engine")
    parser.add_argument("--hidden", type=int, default=256, help="width of the model")
    parser.add_argument("--layers", type=int, default=4, help="layers of the model")
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 4, 8], help="K of a prompt")
    parser.add_argument("--caching", type=int, nargs="+", default=[1, 0], help="1 on, 0 off")
    parser.add_argument("--stream", type=int, nargs="+", default=[0],
                        help="rollout.stream_sequences")  # fmt: skip
    parser.add_argument("--transformers", type=int, default=1, help="0 leaves that side out")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of results")
    return parser.parse_args()


def spec_of(args: argparse.Namespace, model: Path, case: Case) -> tuple[Config, RolloutSpec]:
    config = Config(
        rollout=RolloutConfig(
            max_prompt_tokens=args.prompt,
            max_response_tokens=args.response,
            max_concurrent_sequences=args.concurrent,
            prefix_caching=case.prefix_caching,
            join_running=case.join,
            kv_cache_mib=96,
        ),
        cluster=ClusterConfig(
            cpus_per_node=2,
            object_store_mib=128,
            roles=RolesConfig(rollout=RoleResources(workers=case.engines)),
        ),
    )
    return config, rollout_spec(config, str(model), EOS)


def make_requests(args: argparse.Namespace, samples: int, turn: int) -> list[GenerationRequest]:
    """Prompts of 4 to `--prompt` tokens; the same for all sides of a turn, others in the next."""
    rng = np.random.default_rng([7, turn])
    made: list[GenerationRequest] = []
    for n in range(args.sequences // samples):
        length = int(np.clip(rng.lognormal(2.2, 0.6), 4, args.prompt))
        prompt = (1, *rng.integers(3, 90, size=length - 1).tolist())
        ids = tuple(range(n * samples, (n + 1) * samples))
        made.append(GenerationRequest(n, prompt, ids, tuple(1000 * turn + i for i in ids)))
    return made


class Ours:
    """The role `rollout` behind its handle."""

    def __init__(self, args: argparse.Namespace, model: Path, case: Case) -> None:
        config, spec = spec_of(args, model, case)
        self.case, self.sampling = case, Sampling(1.0, args.response)
        layout = place_roles(config.cluster, [RoleName.rollout])
        self._running = start_cluster(config.cluster, layout, 120.0)
        cluster = self._running.__enter__()
        self.rollout = Fleet(config, cluster, Position(), Account()).rollout
        self.pids = [info.pid for info in self.rollout.start(spec, VERSION).result()]

    def __call__(self, requests: list[GenerationRequest]) -> Turn:
        began, cpu = time.perf_counter(), cpu_seconds(self.pids)
        delivery = Delivery(self.case.stream)
        made = self.rollout.generate(requests, self.sampling, VERSION, delivery).result()
        seconds = time.perf_counter() - began
        tokens = int(made.summary.response_lengths.sum())
        return Turn(tokens, seconds, cpu_seconds(self.pids) - cpu)

    def close(self) -> None:
        self._running.__exit__(None, None, None)


class Process:
    """Another side, in a process of its own that answers turn by turn."""

    def __init__(
        self, target: Callable[[Connection, RolloutSpec], None], spec: RolloutSpec
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        kept = dict(os.environ)
        os.environ.update(engine_environment(spec))
        self._process = context.Process(target=target, args=(theirs, spec), daemon=True)
        self._process.start()
        self.pid = self._process.pid
        os.environ.clear()
        os.environ.update(kept)
        self._receive()

    def _receive(self) -> Any:
        if not self._connection.poll(600):
            raise SystemExit("the other side does not answer")
        return self._connection.recv()

    def ask(self, requests: list[GenerationRequest]) -> None:
        self._connection.send(requests)

    def answer(self) -> Turn:
        return self._receive()

    def close(self) -> None:
        self._connection.send(None)
        self._process.join(30)


def bare_vllm(connection: Connection, spec: RolloutSpec) -> None:
    from vllm import LLM, SamplingParams

    from workers.generation.vllm_engine import _engine_arguments

    arguments = _engine_arguments(spec)
    for name in ("weight_transfer_config", "worker_extension_cls"):
        del arguments[name]
    llm = LLM(**arguments)
    connection.send("ready")
    while (requests := connection.recv()) is not None:
        began = time.perf_counter()
        prompts: list[Any] = []
        parameters: list[SamplingParams] = []
        for request in requests:
            for seed in request.seeds:
                prompts.append({"prompt_token_ids": list(request.prompt_tokens)})
                parameters.append(
                    SamplingParams(
                        temperature=1.0,
                        max_tokens=spec.max_response_tokens,
                        seed=seed,
                        ignore_eos=True,
                        stop_token_ids=[spec.eos_token_id],
                        logprobs=0,
                        detokenize=False,
                    )
                )
        made = llm.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - began
        connection.send(Turn(sum(len(o.outputs[0].token_ids) for o in made), seconds))


def plain_transformers(connection: Connection, spec: RolloutSpec) -> None:
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(spec.threads)
    model = LlamaForCausalLM.from_pretrained(spec.checkpoint, dtype=torch.float32).eval()
    connection.send("ready")
    while (requests := connection.recv()) is not None:
        began, tokens = time.perf_counter(), 0
        prompts = [r.prompt_tokens for r in requests for _ in r.ids]
        size = spec.max_concurrent_sequences
        for first in range(0, len(prompts), size):
            rows = prompts[first : first + size]
            width = max(map(len, rows))
            ids = torch.zeros(len(rows), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for i, row in enumerate(rows):
                ids[i, width - len(row) :], mask[i, width - len(row) :] = torch.tensor(row), 1
            torch.manual_seed(requests[0].seeds[0] + first)
            made = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, temperature=1.0,
                max_new_tokens=spec.max_response_tokens, eos_token_id=spec.eos_token_id,
                pad_token_id=0,
            )  # fmt: skip
            for row in made[:, width:].tolist():
                end = row.index(EOS) + 1 if EOS in row else len(row)
                tokens += end
        connection.send(Turn(tokens, time.perf_counter() - began))


def cpu_seconds(pids: list[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(t.user + t.system for t in times)


def shared(sides: list[Process], requests: list[GenerationRequest]) -> Turn:
    """Several bare engines, each with its share of the prompts, at the same time."""
    pids = [side.pid for side in sides]
    began, cpu = time.perf_counter(), cpu_seconds(pids)
    for n, side in enumerate(sides):
        side.ask(requests[n :: len(sides)])
    turns = [side.answer() for side in sides]
    seconds = time.perf_counter() - began
    return Turn(sum(t.tokens for t in turns), seconds, cpu_seconds(pids) - cpu)


def compare(args: argparse.Namespace, model: Path, case: Case) -> dict[str, Any]:
    _, spec = spec_of(args, model, case)
    bare = [Process(bare_vllm, spec) for _ in range(case.engines)]
    sides: dict[str, Callable[[list[GenerationRequest]], Turn]] = {
        "vllm": lambda requests: shared(bare, requests)
    }
    ours = Ours(args, model, case)
    sides["ours"] = ours
    plain = None
    if args.transformers and case.engines == 1 and case.prefix_caching and case.stream == 0:
        plain = Process(plain_transformers, spec)
        sides["transformers"] = lambda requests: shared([plain], requests)
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for turn in range(args.repetitions + 1):
        requests = make_requests(args, case.samples, turn)
        names = list(sides) if turn % 2 else list(reversed(sides))
        for name in names:
            found = sides[name](requests)
            if turn:  # the first warms up
                turns[name].append(found)
    for process in [*bare, *([plain] if plain else [])]:
        process.close()
    ours.close()
    return summarise(case, turns)


def summarise(case: Case, turns: dict[str, list[Turn]]) -> dict[str, Any]:
    speeds = {name: [t.speed for t in each] for name, each in turns.items()}
    ratios = {
        name: [o / s for o, s in zip(speeds["ours"], each, strict=True)]
        for name, each in speeds.items()
        if name != "ours"
    }
    return {
        "case": str(case),
        "tokens_a_turn": {name: [t.tokens for t in each] for name, each in turns.items()},
        "same_tokens_as_vllm": [a.tokens == b.tokens for a, b in
                                zip(turns["ours"], turns["vllm"], strict=True)],
        "tokens_per_second": speeds,
        "median_tokens_per_second": {n: statistics.median(s) for n, s in speeds.items()},
        "ours_over": ratios,
        "median_ours_over": {name: statistics.median(r) for name, r in ratios.items()},
        "median_ours_over_by_cpu_seconds": {
            name: statistics.median(
                (o.tokens / o.cpu_seconds) / (t.tokens / t.cpu_seconds)
                for o, t in zip(turns["ours"], each, strict=True)
            )
            for name, each in turns.items()
            if name != "ours"
        },
    }  # fmt: skip


def make_model(args: argparse.Namespace, folder: Path) -> None:
    """A random Llama over the pocket world's words whose answers end at very different lengths."""
    create_model(
        folder, hidden_size=args.hidden, layers=args.layers, heads=args.hidden // 64,
        kv_heads=args.hidden // 64, intermediate_size=args.hidden * 11 // 4,
        max_position_embeddings=args.prompt + args.response, tie_word_embeddings=True, seed=0,
    )  # fmt: skip


def write(args: argparse.Namespace, found: list[dict[str, Any]]) -> Path:
    """All cases so far: a long list of them may be cut short."""
    facts = {
        "question": __doc__.splitlines()[0],
        "machine": machine(),
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "cases": found,
    }
    return write_result(args.out, "rollout_throughput", facts)


def main() -> None:
    args = arguments()
    found: list[dict[str, Any]] = []
    path = args.out
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_model(args, model)
        base = Case(args.engines[0], args.samples[0], bool(args.caching[0]), args.stream[0])
        cases = dict.fromkeys(
            [
                *(replace(base, samples=k, prefix_caching=bool(c))
                  for c in args.caching for k in args.samples),
                *(replace(base, engines=n) for n in args.engines),
                *(replace(base, stream=s) for s in args.stream),
            ]
        )  # fmt: skip
        print(f"{'case':<36} {'ours':>8} {'vllm':>8} {'ratio':>6} {'by CPU':>6} "
              f"{'transformers':>14}  (tokens/s)")  # fmt: skip
        for case in cases:
            result = compare(args, model, case)
            found.append(result)
            path = write(args, found)
            speed, ratio = result["median_tokens_per_second"], result["median_ours_over"]
            cpu = result["median_ours_over_by_cpu_seconds"]["vllm"]
            other = f"{speed['transformers']:>8,.0f} {ratio['transformers']:.2f}x" if (
                "transformers" in speed) else ""  # fmt: skip
            print(f"{case!s:<36} {speed['ours']:>8,.0f} {speed['vllm']:>8,.0f} "
                  f"{ratio['vllm']:>6.3f} {cpu:>6.3f} {other:>14}", flush=True)  # fmt: skip
    print(f"written to {path}")


if __name__ == "__main__":
    main()

"""The sides beside ours, as workers: vLLM's own `LLM.generate`, and `generate` of transformers.

They run in processes of the same cluster, with the same resources and environment as our engines,
and time themselves there: nothing of Ray's is in their seconds.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.supervision.backend import WorkerClass
from workers.records.generation import GenerationRequest, Sampling
from workers.records.processes import RoleInfo
from workers.records.specs import RolloutSpec

Answered = tuple[int, float, float]  # response tokens, seconds, processor seconds


class RawWorker:
    """`vllm.LLM` with an engine's arguments and sampling parameters."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._llm: Any = None
        self._spec: RolloutSpec | None = None

    def start(self, spec: RolloutSpec) -> RoleInfo:
        """Build the engine."""
        from vllm import LLM

        from workers.generation.vllm_engine import _engine_arguments

        arguments = _engine_arguments(spec)
        del arguments["weight_transfer_config"]
        self._llm, self._spec = LLM(**arguments), spec
        rows = self._llm.llm_engine.vllm_config.model_config.get_vocab_size()
        if 0 < spec.vocabulary < rows:
            self._llm.collective_rpc("draw_below", args=(spec.vocabulary,))
        return _info(self.rank, spec)

    def turn(self, requests: list[GenerationRequest], sampling: Sampling) -> Answered:
        """All of the requests, in one call."""

        def generate() -> int:
            prompts, parameters = self._inputs(requests, sampling)
            made = self._llm.generate(prompts, parameters, use_tqdm=False)
            return sum(len(each.outputs[0].token_ids) for each in made)

        return _timed(generate)

    def latencies(self, requests: list[GenerationRequest], sampling: Sampling) -> list[float]:
        """Seconds from the begin to the end of each sequence.

        Through the loop under `LLM.generate`, which itself returns when all are done.
        """
        engine, began = self._llm.llm_engine, time.perf_counter()
        for n, (prompt, each) in enumerate(zip(*self._inputs(requests, sampling), strict=True)):
            engine.add_request(str(n), prompt, each)
        found: list[float] = []
        while engine.has_unfinished_requests():
            ended = sum(output.finished for output in engine.step())
            found += [time.perf_counter() - began] * ended
        return found

    def _inputs(
        self, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> tuple[list[Any], list[Any]]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        assert self._spec is not None
        prompts = [{"prompt_token_ids": list(r.prompt_tokens)} for r in requests for _ in r.seeds]
        parameters = [
            SamplingParams(
                temperature=sampling.temperature,
                max_tokens=sampling.max_tokens,
                seed=seed,
                ignore_eos=True,
                stop_token_ids=[self._spec.eos_token_id],
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for request in requests
            for seed in request.seeds
        ]
        return prompts, parameters


class TransformersWorker:
    """`model.generate` over left-padded batches in order of arrival."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._model: Any = None
        self._spec: RolloutSpec | None = None

    def start(self, spec: RolloutSpec) -> RoleInfo:
        """Load the model."""
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(spec.threads)
        dtype = getattr(torch, spec.dtype)
        model: Any = AutoModelForCausalLM.from_pretrained(spec.checkpoint, dtype=dtype)
        self._model, self._spec = model.to(spec.device).eval(), spec
        return _info(self.rank, spec)

    def turn(self, requests: list[GenerationRequest], sampling: Sampling) -> Answered:
        """All of the requests, batch by batch."""
        return _timed(lambda: sum(sum(each) for each in self._batches(requests, sampling)))

    def latencies(self, requests: list[GenerationRequest], sampling: Sampling) -> list[float]:
        """Seconds from the begin to the end of each sequence's batch."""
        found: list[float] = []
        began = time.perf_counter()
        for lengths in self._batches(requests, sampling):
            found += [time.perf_counter() - began] * len(lengths)
        return found

    def _batches(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Any:
        """Yield the lengths of the responses of each batch."""
        import torch

        spec = self._spec
        assert spec is not None
        prompts = [r.prompt_tokens for r in requests for _ in r.ids]
        size = spec.max_concurrent_sequences
        torch.manual_seed(requests[0].seeds[0])
        for first in range(0, len(prompts), size):
            rows = prompts[first : first + size]
            width = max(map(len, rows))
            ids = torch.zeros(len(rows), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for i, row in enumerate(rows):
                ids[i, width - len(row) :], mask[i, width - len(row) :] = torch.tensor(row), 1
            made = self._model.generate(
                input_ids=ids.to(spec.device), attention_mask=mask.to(spec.device),
                do_sample=True, top_k=0, top_p=1.0, temperature=sampling.temperature,
                max_new_tokens=sampling.max_tokens, eos_token_id=spec.eos_token_id, pad_token_id=0,
                suppress_tokens=list(range(spec.vocabulary, self._rows)) or None,
            )  # fmt: skip
            yield [
                row.index(spec.eos_token_id) + 1 if spec.eos_token_id in row else len(row)
                for row in made[:, width:].tolist()
            ]

    @property
    def _rows(self) -> int:
        assert self._spec is not None
        rows = self._model.get_output_embeddings().weight.shape[0]
        return rows if self._spec.vocabulary else 0


def _info(rank: int, spec: RolloutSpec) -> RoleInfo:
    return RoleInfo("rollout", rank, os.getpid(), platform.node(), spec.device)


def _timed(generate: Callable[[], int]) -> Answered:
    began, cpu = time.perf_counter(), time.process_time()
    tokens = generate()
    return tokens, time.perf_counter() - began, time.process_time() - cpu


WORKERS = {
    "raw": WorkerClass(__name__, "RawWorker"),
    "transformers": WorkerClass(__name__, "TransformersWorker"),
}

"""vLLM knows every argument that engines on GPUs give it."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import replace

import pytest
from vllm import LLM
from vllm.engine.arg_utils import EngineArgs

from workers.generation.vllm_engine import _engine_arguments
from workers.records.specs import RolloutSpec

SPEC = RolloutSpec(
    checkpoint="somewhere", engine="vllm", dtype="bfloat16", device="cuda", max_prompt_tokens=8,
    max_response_tokens=8, max_concurrent_sequences=4, kv_cache_bytes=0, gpu_memory_fraction=0.6,
    tensor_parallel_size=1, prefix_caching=True, enforce_eager=False, seed=0, eos_token_id=2,
    sleep=True,
)  # fmt: skip
FIELDS = {field.name for field in dataclasses.fields(EngineArgs)}
# `LLM` passes on to EngineArgs what it does not take by name.
KNOWN = FIELDS | set(inspect.signature(LLM.__init__).parameters) - {"self", "kwargs"}


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        replace(SPEC, sleep=False, interruptible=True, dtype="float32"),
        replace(SPEC, tensor_parallel_size=8, enforce_eager=True),
    ],
)
def test_every_argument_is_a_field(spec: RolloutSpec) -> None:
    arguments = _engine_arguments(spec)
    assert set(arguments) - KNOWN == set()
    assert len(arguments) == 21


def test_gpu_engines_size_their_cache_by_a_share_of_the_memory() -> None:
    arguments = _engine_arguments(SPEC)
    assert arguments["gpu_memory_utilization"] == 0.6
    assert "kv_cache_memory_bytes" not in arguments
    assert "enable_chunked_prefill" not in arguments  # off on CPUs alone

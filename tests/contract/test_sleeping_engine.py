"""The vLLM engine asleep and awake, on a stand-in for vLLM's LLM that has only memory to lose.

It keeps the rules of vllm 0.32 (v1/executor/abstract.py, device_allocator/cumem.py): what sleeps is
not to be used, level 1 keeps weights and loses the cache, and waking a tag that is awake does
nothing. The real thing sleeps on GPUs only.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import workers.generation.vllm_engine
from workers.errors import RoleError
from workers.generation.engine import Sample
from workers.generation.vllm_engine import VllmEngine
from workers.records.generation import Sampling
from workers.records.specs import RolloutSpec
from workers.records.weights import WeightOffer

SPEC = RolloutSpec(
    checkpoint="somewhere", engine="vllm", dtype="bfloat16", device="cuda", max_prompt_tokens=8,
    max_response_tokens=8, max_concurrent_sequences=4, kv_cache_bytes=0, gpu_memory_fraction=0.6,
    tensor_parallel_size=1, prefix_caching=True, enforce_eager=True, seed=0, eos_token_id=2,
    sleep=True,
)  # fmt: skip
ALL = {"weights", "kv_cache"}


class FakeLLM:
    """Answers each request with the one token that its weights are."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.asleep: set[str] = set()
        self.weights: int | None = 7
        self.host: int | None = None
        self.prefixes = 0  # cached ones
        self.log: list[str] = []
        self.error: Exception | None = None
        self.requests: list[str] = []
        self.llm_engine = self

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        self.log.append(f"sleep {level}")
        if self.error is not None:
            raise self.error
        if "weights" not in self.asleep:
            self.host = self.weights if level == 1 else None
        self.weights, self.prefixes = None, 0
        self.asleep = set(ALL)

    def wake_up(self, tags: list[str] | None = None) -> bool:
        self.log.append(f"wake {' '.join(tags or sorted(ALL))}")
        if self.error is not None:
            raise self.error
        if "weights" in set(tags or ALL) & self.asleep:
            self.weights, self.host = self.host, None
        self.asleep -= set(tags or ALL)
        return not self.asleep

    def add_request(self, number: str, prompt: Any, parameters: Any) -> None:
        assert not self.asleep, "vLLM would keep the request and never step"
        self.requests.append(number)

    def step(self) -> list[Any]:
        assert not self.asleep
        self.prefixes += len(self.requests)
        done, self.requests = self.requests, []
        logprobs = SimpleNamespace(logprobs=[-0.5])
        completion = SimpleNamespace(
            token_ids=[self.weights], logprobs=logprobs, finish_reason="stop"
        )
        return [SimpleNamespace(request_id=n, outputs=[completion], finished=True) for n in done]

    def start_weight_update(self) -> None:
        assert "weights" not in self.asleep, "new weights are copied to where the old ones lie"

    def update_weights(self, info: dict[str, Any]) -> None:
        self.log.append("update")
        self.weights = info["update_info"]["offer"].version

    def finish_weight_update(self, version: str) -> None:
        assert str(self.weights) == version

    def reset_prefix_cache(self) -> bool:
        self.prefixes = 0
        return True

    def collective_rpc(self, method: str) -> list[str]:
        return [method]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> VllmEngine:
    monkeypatch.setattr(workers.generation.vllm_engine, "LLM", FakeLLM)
    return VllmEngine(SPEC)


def llm(engine: VllmEngine) -> FakeLLM:
    found: Any = engine._llm
    return found


def drawn(engine: VllmEngine) -> list[int]:
    engine.add([Sample((3,), 0), Sample((4,), 1)], Sampling(1.0, 1))
    return [token for _, generated in engine.step() for token in generated.tokens]


def test_vllm_is_told_at_the_start_and_only_on_gpus(engine: VllmEngine) -> None:
    assert llm(engine).arguments["enable_sleep_mode"] is True
    assert llm(engine).arguments["gpu_memory_utilization"] == 0.6


def test_an_engine_that_wakes_without_new_weights_has_its_own(engine: VllmEngine) -> None:
    assert drawn(engine) == [7, 7]
    assert llm(engine).prefixes == 2
    engine.sleep()
    engine.sleep()
    assert engine.asleep
    assert llm(engine).log == ["sleep 1"]
    assert llm(engine).prefixes == 0
    assert drawn(engine) == [7, 7]
    assert not engine.asleep
    assert llm(engine).log == ["sleep 1", "wake weights kv_cache"]


def test_new_weights_wake_the_weights_and_the_probe_the_cache(engine: VllmEngine) -> None:
    engine.sleep()
    assert engine.receive(WeightOffer(9, (), 8, "shm")) == "received_checksum"
    assert llm(engine).asleep == {"kv_cache"}
    assert engine.asleep
    assert drawn(engine) == [9, 9]
    assert llm(engine).log == ["sleep 1", "wake weights", "update", "wake kv_cache"]


def test_an_engine_sleeps_again_between_transfer_and_probe(engine: VllmEngine) -> None:
    engine.sleep()
    engine.receive(WeightOffer(9, (), 8, "shm"))
    engine.sleep()
    assert llm(engine).asleep == ALL
    assert drawn(engine) == [9, 9]


@pytest.mark.parametrize("error", [RuntimeError("CUDA Error: out of memory"), AssertionError("up")])
def test_memory_that_cannot_be_had_is_a_typed_error(engine: VllmEngine, error: Exception) -> None:
    llm(engine).error = error
    with pytest.raises(RoleError, match="cannot give its GPU memory away"):
        engine.sleep()
    with pytest.raises(RoleError, match="an earlier call failed inside vLLM"):
        drawn(engine)


def test_an_engine_without_room_to_wake_says_what_makes_room(engine: VllmEngine) -> None:
    engine.sleep()
    llm(engine).error = RuntimeError("CUDA Error: out of memory at cumem_allocator.cpp")
    with pytest.raises(RoleError, match="out of memory") as caught:
        drawn(engine)
    assert "trainer.rest_on_host" in caught.value.fix
    with pytest.raises(RoleError, match="an earlier call failed inside vLLM"):
        engine.receive(WeightOffer(9, (), 8, "shm"))

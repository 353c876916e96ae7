"""The plan's memory of a trainer against peaks that were measured, in a process of its own each."""

from __future__ import annotations

import pytest

from orchestrator.config.cluster import RoleName
from orchestrator.config.engines import RolloutConfig, TrainerConfig
from orchestrator.config.model import Attention, ModelConfig
from orchestrator.config.schema import Config
from orchestrator.planning.model_sizes import ModelSize, role_memory

# role, width, layers, inner, words, parameters, tokens, row, attention, checkpointing, peak in MiB
# of one update of a Llama model in fp32 at ZeRO 1, on a CPU.
MEASURED = [
    ("critic", 768, 9, 2048, 512, 64_502_016, 16, 16, "sdpa", False, 2185),
    ("critic", 768, 9, 2048, 512, 64_502_016, 2048, 64, "sdpa", False, 3418),
    ("critic", 256, 4, 704, 512, 3_475_712, 4096, 64, "sdpa", False, 1113),
    ("critic", 256, 8, 704, 512, 6_689_024, 4096, 64, "sdpa", False, 1729),
    ("critic", 256, 4, 2048, 512, 7_604_480, 4096, 64, "sdpa", False, 1487),
    ("critic", 256, 4, 704, 512, 3_475_712, 4096, 512, "eager", False, 1291),
    ("critic", 256, 4, 704, 512, 3_475_712, 4096, 64, "sdpa", True, 871),
    ("policy", 768, 9, 2048, 512, 64_502_016, 16, 16, "sdpa", False, 2173),
    ("policy", 256, 4, 704, 8000, 7_309_568, 4096, 64, "sdpa", False, 1356),
]


@pytest.mark.parametrize("case", MEASURED)
def test_the_plan_is_never_below_what_was_measured_nor_far_above(case: tuple) -> None:
    role, width, layers, inner, words, parameters, tokens, row, attention, saves, peak = case
    config = Config(
        model=ModelConfig(attention=Attention(attention), gradient_checkpointing=saves),
        trainer=TrainerConfig(micro_batch_tokens=tokens),
        rollout=RolloutConfig(max_prompt_tokens=row // 2, max_response_tokens=row // 2,
                              parity_tokens=1),
    )  # fmt: skip
    size = ModelSize(
        parameters, words, 4096, 2 * layers * width, width,
        layers=layers, heads=width // 64, inner=inner,
    )  # fmt: skip
    config.algorithm.ema_decay = 0.0
    planned = role_memory(config, RoleName(role), size).total / 2**20
    assert peak <= planned <= 1.6 * peak

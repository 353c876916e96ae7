"""The plan's memory of a trainer against peaks that were measured, in a process of its own each."""

from __future__ import annotations

import pytest

from orchestrator.config.cluster import RoleName
from orchestrator.config.engines import RolloutConfig, TrainerConfig
from orchestrator.config.model import Attention, ModelConfig
from orchestrator.config.schema import Config
from orchestrator.planning.model_sizes import ModelSize, role_memory

# role, width, layers, inner, words, parameters, tokens, row, attention, checkpointing, peak in MiB
# of three updates of a Llama model in fp32 on one rank, on a CPU.
MEASURED = [
    ("critic", 768, 9, 2048, 512, 64_109_569, 16, 16, "sdpa", False, 1461),
    ("critic", 768, 9, 2048, 512, 64_109_569, 2048, 64, "sdpa", False, 3177),
    ("critic", 256, 4, 704, 512, 3_344_897, 4096, 64, "sdpa", False, 1108),
    ("critic", 256, 8, 704, 512, 6_558_465, 4096, 64, "sdpa", False, 1674),
    ("critic", 256, 4, 2048, 512, 7_473_409, 4096, 64, "sdpa", False, 1539),
    ("critic", 256, 4, 704, 512, 3_344_897, 4096, 512, "eager", False, 1262),
    ("critic", 256, 4, 704, 512, 3_344_897, 4096, 64, "sdpa", True, 923),
    ("policy", 768, 9, 2048, 512, 64_108_800, 16, 16, "sdpa", False, 1462),
    ("policy", 256, 4, 704, 8000, 5_261_568, 4096, 64, "sdpa", False, 1185),
    ("policy", 512, 16, 1536, 32000, 70_926_848, 1536, 96, "sdpa", False, 3282),
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
    assert peak <= planned <= 1.2 * peak

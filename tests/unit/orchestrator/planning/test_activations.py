"""The plan's memory of a trainer against peaks that were measured, in a process of its own each."""

from __future__ import annotations

import pytest

from orchestrator.config.cluster import RoleName
from orchestrator.config.engines import RolloutConfig, TrainerConfig
from orchestrator.config.model import Attention, ModelConfig
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.activations import smaller_passes
from orchestrator.planning.model_sizes import (
    ModelSize,
    counted_tokens,
    pass_tokens,
    role_memory,
)

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


def ppo(**algorithm: int) -> Config:
    config = Config(
        stages=[StageName.ppo],
        rollout=RolloutConfig(max_prompt_tokens=24, max_response_tokens=40, parity_tokens=1),
    )
    config.algorithm.prompts_per_iteration = 12
    config.algorithm.sequences_per_minibatch = 6
    config.algorithm.evaluate_every = 0
    for name, value in algorithm.items():
        setattr(config.algorithm, name, value)
    return config


def test_passes_of_ppo_alone_are_no_larger_than_its_batches():
    config = ppo()
    config.cluster.roles.critic.workers = 4
    assert pass_tokens(config, RoleName.policy) == 6 * 64
    assert pass_tokens(config, RoleName.critic) == 2 * 64  # one of four ranks
    assert pass_tokens(config, RoleName.reward) == 12 * 64
    assert counted_tokens(config, RoleName.policy) == 12 * 40  # the old log-probabilities
    assert pass_tokens(ppo(evaluate_every=1, evaluation_prompts=30), RoleName.reward) == 30 * 64
    config.trainer.micro_batch_tokens, config.reward.micro_batch_tokens = 200, 300
    assert pass_tokens(config, RoleName.policy) == counted_tokens(config, RoleName.policy) == 200
    assert pass_tokens(config, RoleName.reference) == 300
    config.stages = [StageName.sft, StageName.ppo]
    assert pass_tokens(config, RoleName.critic) == 200


def test_large_passes_are_told_with_a_number_that_lowers_them():
    size = ModelSize(
        70_926_848, 32000, 4096, 2 * 16 * 512, 512, layers=16, heads=8, inner=1536
    )  # fmt: skip
    config = ppo(prompts_per_iteration=64, sequences_per_minibatch=64)
    memory = [role_memory(config, role, size) for role in (RoleName.reward, RoleName.policy)]
    (note,) = smaller_passes(config, memory)
    assert "activations of 4,096 tokens take 4.75 GiB" in note  # 5.10e9 bytes
    assert "trainer.micro_batch_tokens=768 takes 0.89 GiB" in note
    config.trainer.micro_batch_tokens = 768
    assert not smaller_passes(config, [role_memory(config, RoleName.policy, size)])
    assert not smaller_passes(config, memory[:1])


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

"""Activation memory of a model's passes, estimated from its shape as an upper bound.

Measured on a CPU with Llama models of 3 to 71 million weights, in micro-batches of 16 to 4,096
tokens: the peak memory of a trainer's process is .85 to 1 times the estimate.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.config.cluster import Accelerator, RoleName
from orchestrator.config.engines import Offload
from orchestrator.config.model import Attention
from orchestrator.config.schema import Config
from orchestrator.planning.model_sizes import (
    FLOAT,
    ModelSize,
    RoleMemory,
    number_bytes,
    pass_tokens,
)

_GIB = 1 << 30

# Numbers that a layer keeps per token for its gradient, in widths: norms and their inputs, query,
# key, value, rotated copies, output, residuals; and in inner widths: gate, up and their products.
_WIDTHS, _INNER = 20, 5
_SCORES = 3  # copies of a (heads, tokens, tokens) array of plain attention
_MASK = 8  # bytes per pair of tokens of a packed row, on a CPU
# fp32 numbers per weight that ZeRO has on a CPU in addition to weights, gradients and moments: its
# own copy of the weights, and in a step the flattened gradient and the update.
_STEP_COPIES = 3


def activation_bytes(config: Config, size: ModelSize, tokens: int, *, trains: bool) -> int:
    """Bytes of one micro-batch within the layers; without a gradient, of one layer at a time.

    Args:
        config: The run.
        size: Size of the model.
        tokens: Tokens per micro-batch.
        trains: Whether activations are kept for a gradient.
    """
    rollout, model = config.rollout, config.model
    row = rollout.max_prompt_tokens + rollout.max_response_tokens
    tokens = max(tokens, row)
    number = number_bytes(config.trainer.precision)
    layer = tokens * (_WIDTHS * size.width + _INNER * size.inner) * number
    pairs = 0
    if model.attention is Attention.eager:
        layer += tokens * row * size.heads * _SCORES * number
    elif model.attention is Attention.sdpa and config.cluster.accelerator is Accelerator.cpu:
        pairs = tokens * tokens * _MASK
    kept = 1
    if trains:  # a layer that is computed again is there with its gradients
        kept = 2 if model.gradient_checkpointing else size.layers
    inputs = 2 * tokens * size.width * size.layers * number if trains else 0
    return kept * layer + inputs + pairs


def smaller_passes(config: Config, memory: Sequence[RoleMemory]) -> list[str]:
    """A note on trainers on a CPU whose activations a smaller micro-batch would lower a lot.

    At 71 million weights, passes of 800 tokens instead of 1,536 took .84 GiB less and as long.
    """
    trainers = [m for m in memory if m.role in (RoleName.policy, RoleName.critic)]
    most = max(trainers, key=lambda each: each.activations, default=None)
    if most is None or most.on_gpu or most.activations <= 1.5 * _GIB:
        return []
    tokens = pass_tokens(config, most.role)
    row = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    fewer = max(int(tokens * _GIB / most.activations) // 128 * 128, row)
    if fewer > 0.75 * tokens:
        return []
    part = fewer / tokens * most.activations / _GIB
    return [
        f"activations of {tokens:,} tokens take {most.activations / _GIB:.3g} GiB in a trainer; "
        f"trainer.micro_batch_tokens={fewer} takes {part:.2g} GiB and as long"
    ]


def step_bytes(config: Config, parameters: int, ranks: int) -> int:
    """Temporary bytes of an optimizer step on a CPU, in addition to the permanent state.

    A single rank updates its weights in place, unless ZeRO offloads their state.
    """
    if config.cluster.accelerator is not Accelerator.cpu or config.model.lora.rank:
        return 0
    if ranks == 1 and config.trainer.offload is Offload.none:
        return 0
    return _STEP_COPIES * FLOAT * parameters

"""Activation memory of a model's passes, estimated from its shape as an upper bound.

Measured on a CPU with Llama models of 3 to 71 million weights, in micro-batches of 16 to 4,096
tokens: the peak memory of a trainer's process is .85 to 1 times the estimate.
"""

from __future__ import annotations

from orchestrator.config.cluster import Accelerator
from orchestrator.config.engines import Offload
from orchestrator.config.model import Attention
from orchestrator.config.schema import Config
from orchestrator.planning.model_sizes import FLOAT, ModelSize, number_bytes

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


def step_bytes(config: Config, parameters: int, ranks: int) -> int:
    """Temporary bytes of an optimizer step on a CPU, in addition to the permanent state.

    A single rank updates its weights in place, unless ZeRO offloads their state.
    """
    if config.cluster.accelerator is not Accelerator.cpu or config.model.lora.rank:
        return 0
    if ranks == 1 and config.trainer.offload is Offload.none:
        return 0
    return _STEP_COPIES * FLOAT * parameters

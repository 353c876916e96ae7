"""What a model's passes take beside its weights: an estimate from its shape, never below.

Measured on a CPU with Llama models of 3 to 65 million weights, in micro-batches of 16 to 4,096
tokens: the peak of a trainer's process is .6 to 1 times what this makes of it.
"""

from __future__ import annotations

from orchestrator.config.cluster import Accelerator
from orchestrator.config.model import Attention
from orchestrator.config.schema import Config
from orchestrator.planning.model_sizes import FLOAT, ModelSize, number_bytes

# Numbers that a layer keeps of a token for its gradient, in widths: norms and their inputs, query,
# key, value, rotated copies, output, residuals; and in inner widths: gate, up and their products.
_WIDTHS, _INNER = 20, 5
_SCORES = 3  # copies of a (heads, tokens, tokens) array of plain attention
_MASK = 14  # bytes for a pair of tokens that lie end to end in one row, on a CPU
# fp32 numbers a weight on a CPU beside weights, gradients and moments: deepspeed's own copy of the
# weights, and in a step the flattened gradient and the update.
_STEP_COPIES = 3


def activation_bytes(config: Config, size: ModelSize, tokens: int, *, trains: bool) -> int:
    """Memory of one micro-batch within the layers; without a gradient one layer at a time.

    Args:
        config: The run.
        size: Of the model.
        tokens: Of a micro-batch.
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
    if trains and not model.gradient_checkpointing:
        kept = size.layers
    inputs = 2 * tokens * size.width * size.layers * number if trains else 0
    return kept * layer + inputs + pairs


def step_bytes(config: Config, parameters: int) -> int:
    """What an optimizer step takes beside the state that stays, on a CPU."""
    if config.cluster.accelerator is not Accelerator.cpu or config.model.lora.rank:
        return 0
    return _STEP_COPIES * FLOAT * parameters

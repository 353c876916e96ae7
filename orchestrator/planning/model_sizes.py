"""How large the models are, and what memory each role will need: figures from headers alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.config.cluster import Accelerator, RoleName
from orchestrator.config.engines import Offload, Precision
from orchestrator.config.model import PocketModelConfig
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from workers.model_folders.files import read_headers
from workers.model_folders.shape import read_shape
from workers.pocket.words import VOCABULARY

FLOAT = 4  # bytes of an fp32 number
# Python, torch and the role's libraries before any model: measured resident sizes on CPU.
_PROCESS_BYTES = {
    RoleName.rollout: 800 << 20,
    RoleName.reward: 400 << 20,
    RoleName.reference: 400 << 20,
    RoleName.policy: 500 << 20,
    RoleName.critic: 500 << 20,
}
_WHOLE = (StageName.pretrain, StageName.pretrain_large)  # stages that train frozen weights too
# Copies of a (tokens, vocabulary) fp32 array alive at once: logits, their log-softmax, a gradient.
_LOGIT_COPIES = {RoleName.policy: 3, RoleName.reference: 2}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A causal language model: numbers of parameters, words and positions, and its KV cache."""

    parameters: int
    vocabulary: int
    positions: int | None  # None = no limit (ALiBi)
    kv_numbers_per_token: int  # keys and values of one token over all layers
    width: int  # of the hidden states that the output layer reads
    plain_logits: bool = True  # they are the output layer's answer: read a chunk at a time
    # Of the layers; where they are not known, activations are not counted.
    layers: int = field(default=0, compare=False)
    heads: int = field(default=0, compare=False)
    inner: int = field(default=0, compare=False)  # width of the feed-forward layers


@dataclass(frozen=True, slots=True)
class RoleMemory:
    """An estimate for one worker, in bytes."""

    role: RoleName
    workers: int
    parameters: int
    model: int  # weights, and in a trainer gradients and optimizer state, on the device
    least: int  # of `model`, the part that is there whichever weights `model.freeze` names
    working: int  # logits of one micro-batch, or the KV cache of an engine
    host: int  # the process before any model, and what of a model on a GPU rests in host memory
    loading: int  # weights that pass through the device before they are divided over ranks
    on_gpu: bool  # then host memory is another memory than that of model and logits
    activations: int = 0  # of one micro-batch, within the layers
    step: int = 0  # copies that an optimizer step makes, and frees
    yielded: int = 0  # of `model`, what leaves the GPU while engines sample

    @property
    def device(self) -> int:
        """The most that a GPU holds, while it loads or while it works."""
        return max(self.model + self.working, self.loading)

    @property
    def least_device(self) -> int:
        """What a GPU holds in any case, whichever weights are frozen."""
        return max(self.least + self.working, self.loading)

    @property
    def resting(self) -> int:
        """What stays on a GPU while engines sample: a trainer's caches are empty then."""
        trains = self.role in (RoleName.policy, RoleName.critic)
        return self.model - self.yielded if trains else self.device

    @property
    def total(self) -> int:
        """What one worker takes at work, of its GPU if it has one."""
        passing = self.activations + self.step
        return self.model + self.working + passing + (0 if self.on_gpu else self.host)


def pocket_size(model: PocketModelConfig) -> ModelSize:
    """The size of a Llama-architecture model made from scratch, counted from its shape."""
    width, head = model.hidden_size, model.hidden_size // model.heads
    attention = 2 * width * width + 2 * width * model.kv_heads * head
    layer = attention + 3 * width * model.intermediate_size + 2 * width
    embeddings = len(VOCABULARY) * width * (1 if model.tie_word_embeddings else 2)
    return ModelSize(
        parameters=embeddings + model.layers * layer + width,
        vocabulary=len(VOCABULARY),
        positions=model.max_position_embeddings,
        kv_numbers_per_token=2 * model.layers * model.kv_heads * head,
        width=width,
        layers=model.layers,
        heads=model.heads,
        inner=model.intermediate_size,
    )


def checkpoint_size(folder: Path) -> ModelSize | None:
    """The size of the model in a Hugging Face folder, from config.json and safetensors headers.

    Returns:
        None where there is no such folder.

    Raises:
        BrokenCheckpointError: weights are missing or broken, or config.json lacks the shape.
    """
    if not (folder / "config.json").is_file():
        return None
    shape = read_shape(folder)
    parameters = sum(
        math.prod(tensor.shape) for file in read_headers(folder).values() for tensor in file
    )
    return ModelSize(
        parameters=parameters,
        vocabulary=shape.vocabulary,
        positions=shape.positions,
        kv_numbers_per_token=2 * shape.layers * shape.kv_heads * shape.head_size,
        width=shape.width,
        plain_logits=shape.plain_logits,
        layers=shape.layers,
        heads=shape.heads,
        inner=shape.inner,
    )


def role_memory(config: Config, role: RoleName, size: ModelSize) -> RoleMemory:
    """Estimate the memory of one worker of `role` that holds a model of `size`."""
    workers = config.cluster.roles.of(role).workers
    resting, yielded, least = 0, 0, None  # least: None = as `model`
    if role in (RoleName.policy, RoleName.critic):
        averaged = role is RoleName.policy
        model, resting = _trained_bytes(config, size.parameters, workers, averaged=averaged)
        if config.model.freeze and not (averaged and set(_WHOLE) & set(config.stages)):
            least, _ = _trained_bytes(
                config, size.parameters, workers, averaged=False, trains=False
            )
        tokens, loading = config.trainer.micro_batch_tokens, number_bytes(config.trainer.precision)
        if config.trainer.rest_on_host:
            yielded = model - size.parameters * loading
            resting += yielded
    elif role is RoleName.rollout:
        number = number_bytes(config.rollout.precision)
        model = size.parameters * number // config.rollout.tensor_parallel_size
        tokens, loading = 0, 0
        resting = model if config.rollout.sleep else 0
    else:
        model = size.parameters * number_bytes(config.trainer.precision)
        tokens, loading = config.reward.micro_batch_tokens, 0
    working = _logit_bytes(config, role, size, tokens)
    on_gpu = config.cluster.accelerator is Accelerator.cuda
    from orchestrator.planning.activations import activation_bytes, step_bytes  # which reads sizes

    trains = role in (RoleName.policy, RoleName.critic)
    engine = role is RoleName.rollout
    if role is RoleName.rollout:
        share = int(config.rollout.gpu_memory_fraction * gpu_bytes(config))
        working = max(0, share - model) if on_gpu else config.rollout.kv_cache_mib << 20
    return RoleMemory(
        role=role,
        workers=workers,
        parameters=size.parameters,
        model=model,
        least=least if least is not None else model,
        working=working,
        host=_PROCESS_BYTES[role] + resting,
        loading=size.parameters * loading,
        on_gpu=on_gpu,
        activations=0 if engine else activation_bytes(config, size, tokens, trains=trains),
        step=step_bytes(config, size.parameters) if trains else 0,
        yielded=yielded,
    )


def _logit_bytes(config: Config, role: RoleName, size: ModelSize, tokens: int) -> int:
    """What reading the log-probabilities of a micro-batch takes beside the model.

    Of plain logits no more exist at once than `trainer.logits_mib` says; the gradient of the output
    layer is then summed in fp32 (`workers.ops.linear_logprobs`).
    """
    word, copies = size.vocabulary * FLOAT, _LOGIT_COPIES.get(role, 0)
    most = max(1, (config.trainer.logits_mib << 20) // word)
    if not size.plain_logits or tokens <= most:
        return tokens * word * copies
    summed = role is RoleName.policy and not config.model.lora.rank
    return most * word * copies + (word * size.width if summed else 0)


def number_bytes(precision: Precision) -> int:
    """Bytes of one number."""
    return 2 if precision is Precision.bf16 else FLOAT


def _trained_bytes(
    config: Config, parameters: int, ranks: int, *, averaged: bool, trains: bool = True
) -> tuple[int, int]:
    """Weights, gradients and AdamW state of one rank: (on its device, beside a GPU on the host).

    AdamW keeps two fp32 moments, and a fp32 copy of bf16 weights. ZeRO-1 divides this over ranks,
    ZeRO-2 also gradients (fp32), ZeRO-3 also weights (ZeRO, arXiv 1910.02054, section 3). Adapters
    leave nothing but the weights to count: of a d x d matrix, those of rank r train 2 r / d. What
    `model.freeze` saves depends on names and is not taken off; `trains=False` takes off all that it
    could. Offloaded state takes the gradients
    with it; the moving average always rests on the host.
    """
    offload, stage = config.trainer.offload, config.trainer.zero_stage
    weights = number_bytes(config.trainer.precision) / (ranks if stage >= 3 else 1)
    state = average = 0.0
    if trains and not config.model.lora.rank:
        bf16 = config.trainer.precision is Precision.bf16
        state = (2 * FLOAT + (FLOAT if bf16 else 0)) / ranks
        state += FLOAT / (ranks if stage >= 2 else 1)
        average = FLOAT if averaged and config.algorithm.ema_decay > 0 else 0
    device = (0.0 if offload is Offload.parameters else weights) + (
        state if offload is Offload.none else 0.0
    )
    host = weights + state + average - device
    if config.cluster.accelerator is Accelerator.cpu:
        device, host = device + host, 0.0
    return math.ceil(parameters * device), math.ceil(parameters * host)


def sequences_in_cache(config: Config, size: ModelSize) -> int:
    """How many sequences of full length the KV cache of one engine holds at once.

    A GPU engine's cache is what `rollout.gpu_memory_fraction` leaves beside the weights; tensor
    parallel shards divide both.
    """
    rollout = config.rollout
    number = number_bytes(rollout.precision)
    tokens = rollout.max_prompt_tokens + rollout.max_response_tokens
    cache = rollout.kv_cache_mib << 20
    if config.cluster.accelerator is Accelerator.cuda:
        share = rollout.gpu_memory_fraction * rollout.tensor_parallel_size
        cache = int(share * gpu_bytes(config)) - size.parameters * number
    return max(0, cache) // (tokens * size.kv_numbers_per_token * number)


def gpu_bytes(config: Config) -> int:
    """Memory of one GPU."""
    return int(config.cluster.gpu_memory_gib * (1 << 30))

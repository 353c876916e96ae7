"""Model sizes, and the memory that each role will need, derived from file headers alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.config.cluster import Accelerator, RoleName
from orchestrator.config.data import DataSourceKind
from orchestrator.config.engines import Offload, Precision
from orchestrator.config.model import PocketModelConfig
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from workers.model_folders.files import read_headers
from workers.model_folders.shape import read_shape
from workers.pocket.words import vocabulary_of

FLOAT = 4  # bytes of an fp32 number
# Resident size of a process before it loads a model (Python, torch, libraries), measured on CPU.
_PROCESS_BYTES = {
    RoleName.rollout: 1056 << 20,
    RoleName.reward: 400 << 20,
    RoleName.reference: 400 << 20,
    RoleName.policy: 490 << 20,
    RoleName.critic: 490 << 20,
}
_WHOLE = (StageName.pretrain, StageName.pretrain_large)  # stages that ignore model.freeze
# Copies of a (tokens, vocabulary) fp32 array alive at once if a model changes its logits: logits,
# log-softmax, gradient. Unchanged logits become their own gradient.
_LOGIT_COPIES = {RoleName.policy: 3, RoleName.reference: 2}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Sizes of a causal language model: parameters, vocabulary, positions, KV cache and layers."""

    parameters: int
    vocabulary: int
    positions: int | None  # None = no limit (ALiBi)
    kv_numbers_per_token: int  # keys and values of one token over all layers
    width: int  # of the hidden states that the output layer reads
    # The logits are the unchanged output of the output layer, so they can be computed in chunks.
    plain_logits: bool = True
    # Shape of the layers; 0 = unknown, then activations are not counted.
    layers: int = field(default=0, compare=False)
    heads: int = field(default=0, compare=False)
    inner: int = field(default=0, compare=False)  # width of the feed-forward layers


@dataclass(frozen=True, slots=True)
class RoleMemory:
    """Memory estimate for one worker, in bytes."""

    role: RoleName
    workers: int
    parameters: int
    model: int  # weights, and in a trainer gradients and optimizer state, on the device
    least: int  # lower bound of `model`, whichever weights `model.freeze` names
    working: int  # logits of one micro-batch, or the KV cache of an engine
    host: int  # the process before loading, and the part of a GPU model kept in host memory
    loading: int  # weights that pass through the device before they are sharded over ranks
    on_gpu: bool  # model and logits are in GPU memory, not in host memory
    activations: int = 0  # of one micro-batch, within the layers
    step: int = 0  # temporary copies of an optimizer step
    yielded: int = 0  # part of `model` that leaves the GPU during generation

    @property
    def device(self) -> int:
        """Peak bytes on a GPU, during loading or during work."""
        return max(self.model + self.working, self.loading)

    @property
    def least_device(self) -> int:
        """Lower bound of `device`, whichever weights are frozen."""
        return max(self.least + self.working, self.loading)

    @property
    def resting(self) -> int:
        """Bytes that stay on a GPU during generation, when a trainer's caches are empty."""
        trains = self.role in (RoleName.policy, RoleName.critic)
        return self.model - self.yielded if trains else self.device

    @property
    def total(self) -> int:
        """Bytes that one worker uses at work: of GPU memory if it has a GPU, else of the host's."""
        passing = self.activations + self.step
        return self.model + self.working + passing + (0 if self.on_gpu else self.host)


def policy_size(config: Config) -> ModelSize | None:
    """The size of the policy's model; None when its folder cannot be read yet."""
    pocket = config.data.source is DataSourceKind.pocket
    if StageName.pretrain in config.stages and pocket:
        return pocket_size(config.model.pocket, arithmetic=config.data.pocket.arithmetic)
    if StageName.pretrain_large in config.stages and pocket:
        return pocket_size(config.model.large, arithmetic=config.data.pocket.arithmetic)
    given = config.model.checkpoints
    tuned = (given.ppo, given.ppo_ptx, given.dpo, given.online_dpo, given.rejection_sampling)
    for folder in (given.initial, given.base, given.sft, *tuned):
        if folder:
            return checkpoint_size(Path(folder))
    return None


def pocket_size(model: PocketModelConfig, *, arithmetic: bool = False) -> ModelSize:
    """The size of a Llama-architecture pocket model, computed from its shape."""
    width, head = model.hidden_size, model.hidden_size // model.heads
    attention = 2 * width * width + 2 * width * model.kv_heads * head
    layer = attention + 3 * width * model.intermediate_size + 2 * width
    words = len(vocabulary_of(arithmetic=arithmetic))
    embeddings = words * width * (1 if model.tie_word_embeddings else 2)
    return ModelSize(
        parameters=embeddings + model.layers * layer + width,
        vocabulary=words,
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
        None if the folder has no config.json.

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
    resting, yielded, least = 0, 0, None  # least: None = equal to `model`
    if role in (RoleName.policy, RoleName.critic):
        averaged = role is RoleName.policy
        model, resting = _trained_bytes(config, size.parameters, workers, averaged=averaged)
        if config.model.freeze and not (averaged and set(_WHOLE) & set(config.stages)):
            least, _ = _trained_bytes(
                config, size.parameters, workers, averaged=False, trains=False
            )
        loading = number_bytes(config.trainer.precision)
        if config.trainer.rest_on_host:
            yielded = model - size.parameters * loading
            resting += yielded
    elif role is RoleName.rollout:
        number = number_bytes(config.rollout.precision)
        model = size.parameters * number // config.rollout.tensor_parallel_size
        loading = 0
        resting = model if config.rollout.sleep else 0
    else:
        model = size.parameters * number_bytes(config.trainer.precision)
        loading = 0
    working = _logit_bytes(config, role, size, counted_tokens(config, role))
    on_gpu = config.cluster.accelerator is Accelerator.cuda
    # Imported here because activations imports this module.
    from orchestrator.planning.activations import activation_bytes, step_bytes

    tokens = pass_tokens(config, role)
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
        step=step_bytes(config, size.parameters, workers) if trains else 0,
        yielded=yielded,
    )


def pass_tokens(config: Config, role: RoleName) -> int:
    """Most tokens of one pass of a role: one that updates weights, in a trainer.

    PPO's own rows may be fewer than the micro-batch allows; other stages usually fill it.
    """
    if role is RoleName.rollout:
        return 0
    trains = role in (RoleName.policy, RoleName.critic)
    most = (config.trainer if trains else config.reward).micro_batch_tokens
    per_step = config.algorithm.sequences_per_minibatch
    rollout = config.rollout
    row = rollout.max_prompt_tokens + rollout.max_response_tokens
    return min(most, _ppo_rows(config, role, per_step if trains else 0) * row or most)


def counted_tokens(config: Config, role: RoleName) -> int:
    """Most tokens of one pass whose log-probabilities a role computes: PPO's are of responses."""
    if role is RoleName.rollout:
        return 0
    trains = role in (RoleName.policy, RoleName.critic)
    most = (config.trainer if trains else config.reward).micro_batch_tokens
    return min(most, _ppo_rows(config, role, 0) * config.rollout.max_response_tokens or most)


def _ppo_rows(config: Config, role: RoleName, sequences: int) -> int:
    """Sequences of one worker's share, of an iteration if `sequences` is 0; 0 = not only PPO."""
    if set(config.stages) != {StageName.ppo}:
        return 0
    algorithm = config.algorithm
    iteration = algorithm.prompts_per_iteration * algorithm.samples_per_prompt
    evaluated = algorithm.evaluation_prompts if algorithm.evaluate_every else 0
    each = sequences or max(iteration, evaluated)
    return math.ceil(each / config.cluster.roles.of(role).workers)


def _logit_bytes(config: Config, role: RoleName, size: ModelSize, tokens: int) -> int:
    """Bytes for the logprobs of a micro-batch, in addition to the model.

    Plain logits are computed in chunks of at most `trainer.logits_mib`; the gradient of the output
    layer is then summed in fp32 (`workers.ops.linear_logprobs`).
    """
    word, copies = size.vocabulary * FLOAT, _LOGIT_COPIES.get(role, 0)
    if not size.plain_logits:
        return tokens * word * copies
    most = max(1, (config.trainer.logits_mib << 20) // word)
    summed = tokens > most and role is RoleName.policy and not config.model.lora.rank
    return min(tokens, most) * word * min(copies, 1) + (word * size.width if summed else 0)


def number_bytes(precision: Precision) -> int:
    """Bytes per number."""
    return 2 if precision is Precision.bf16 else FLOAT


def _trained_bytes(
    config: Config, parameters: int, ranks: int, *, averaged: bool, trains: bool = True
) -> tuple[int, int]:
    """Bytes of weights, gradients and AdamW state of one rank: (on its device, on the host).

    AdamW keeps two fp32 moments, and a fp32 copy of bf16 weights. ZeRO-1 shards this over ranks,
    ZeRO-2 also gradients (fp32), ZeRO-3 also weights (ZeRO, arXiv 1910.02054, section 3). With
    adapters only the weights count: rank r trains 2 r / d of a d x d matrix. The savings of
    `model.freeze` depend on names and are not subtracted; `trains=False` subtracts the most that
    they could be. Offloading the optimizer state offloads the gradients too; the moving average is
    always on the host. On a CPU all is on the device.
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
    """The number of full-length sequences that fit into the KV cache of one engine.

    A GPU engine's cache is the part of `rollout.gpu_memory_fraction` not used by the weights;
    tensor parallelism shards both.
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
    """Bytes of memory of one GPU."""
    return int(config.cluster.gpu_memory_gib * (1 << 30))

"""Settings of the trainers and of the rollout engines."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from orchestrator.config.ranges import at_least, below_one, between, fraction, positive
from workers.errors import ConfigError


class RolloutEngine(Enum):
    """The library that generates responses."""

    vllm = "vllm"
    transformers = "transformers"


class Precision(Enum):
    """Number format of weights and activations in a trainer or an engine."""

    fp32 = "fp32"
    bf16 = "bf16"


class Schedule(Enum):
    """Learning-rate schedule after warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    """Decays to `min_learning_rate_ratio` of the peak."""


class Offload(Enum):
    """What a trainer keeps in host memory instead of GPU memory."""

    none = "none"
    optimizer = "optimizer"
    """The optimizer state; the update is computed on the CPU."""
    parameters = "parameters"
    """The weights as well; ZeRO-3 only."""


class Packing(Enum):
    """How sequences are batched for the trainers, the reference and the reward model."""

    auto = "auto"
    """Concatenated without padding, for model families known to keep packed sequences separate."""
    off = "off"
    """One padded row per sequence."""


@dataclass(slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    learning_rate: float = positive(1e-5)
    """Peak learning rate."""
    beta1: float = below_one(0.9)
    """Decay of the mean of the gradients (Adam)."""
    beta2: float = below_one(0.95)
    """Decay of the mean of the squared gradients (Adam)."""
    eps: float = positive(1e-5)
    """Added to the root of the second moment (Adam)."""
    weight_decay: float = at_least(0, 0.0)
    """Decoupled weight decay (AdamW)."""
    max_grad_norm: float = positive(1.0)
    """Gradients with a larger norm are scaled down to it."""
    schedule: Schedule = Schedule.cosine
    """Learning rate after warm-up."""
    warmup_steps: int = at_least(0, 0)
    """Optimizer steps from the first learning rate to the peak."""
    warmup_start_ratio: float = fraction(0.0)
    """Learning rate of the first step as a fraction of the peak; 0 = 1 / warmup_steps."""
    min_learning_rate_ratio: float = fraction(0.1)
    """Learning rate at the end of the schedule, as a fraction of the peak."""


@dataclass(slots=True, kw_only=True)
class TrainerConfig:
    """DeepSpeed settings shared by the policy and the critic trainers."""

    zero_stage: int = between(1, 1, 3)
    """1, 2 or 3: what is divided over ranks. A single rank divides nothing unless it offloads."""
    precision: Precision = Precision.fp32
    """Numbers of forward and backward passes; bf16 keeps fp32 master weights."""
    micro_batch_tokens: int = positive(4096)
    """Maximum tokens per micro-batch (one forward and backward pass), padding included."""
    packing: Packing = Packing.auto
    """How sequences are batched; also applies to the reference and the reward model."""
    logits_mib: int = positive(256)
    """Maximum size of the fp32 logits in memory; logprobs of more tokens are computed in chunks,
    and again in the backward pass. Also applies to the reference."""
    weight_bucket_mib: int = positive(64)
    """Bucket size in which ZeRO-3 gathers weights for a weight sync."""
    offload: Offload = Offload.none
    """What is kept in host memory instead of GPU memory."""
    rest_on_host: bool = False
    """Move the optimizer state to host memory during generation, and back for the update; needs
    rollout.sleep, and on several ranks ZeRO-2, or ZeRO-1 in fp32."""

    def check(self, key: str) -> None:
        """Check that the ZeRO stage can offload weights."""
        if self.offload is Offload.parameters and self.zero_stage != 3:
            raise ConfigError(
                f"offload=parameters with zero_stage={self.zero_stage}, which keeps whole weights",
                where=f"{key}.offload",
                fix="use trainer.zero_stage=3, or trainer.offload=optimizer",
            )


@dataclass(slots=True, kw_only=True)
class RolloutConfig:
    """The generation engines."""

    engine: RolloutEngine = RolloutEngine.vllm
    """Library that generates; transformers is slow and meant for comparison."""
    precision: Precision = Precision.fp32
    """Numbers of weights and passes of the engines."""
    temperature: float = positive(1.0)
    """Sampling temperature of the policy; logprobs are those at this temperature."""
    max_prompt_tokens: int = positive(64)
    """Longest prompt that engines accept."""
    max_response_tokens: int = positive(24)
    """Responses are cut at this length."""
    max_concurrent_sequences: int = positive(128)
    """Most sequences that one engine generates at a time."""
    kv_cache_mib: int = positive(64)
    """Size of the KV cache of one engine; CPU engines only."""
    gpu_memory_fraction: float = fraction(0.5)
    """Fraction of each GPU's memory that an engine takes; GPU engines only."""
    tensor_parallel_size: int = positive(1)
    """GPUs per engine."""
    prefix_caching: bool = True
    """Engines reuse the KV cache of equal prompt beginnings (vLLM)."""
    enforce_eager: bool = True
    """No CUDA graphs (vLLM): slower generation, less memory, faster start."""
    stream_sequences: int = at_least(0, 0)
    """Return finished sequences in groups of this many; 0 = each batch when it is complete."""
    overprovision: float = at_least(0, 0.0)
    """Extra prompts per batch, as a fraction of the prompts needed; the sequences that finish last
    are aborted and recorded."""
    join_running: bool = False
    """true: a batch requested while another is being generated starts at once, in the slots of
    finished sequences (staleness > 0); false: one batch after the other, bit-reproducible."""
    inflight_updates: bool = False
    """With staleness > 0: sync new weights while sequences are being generated; these continue with
    the new weights."""
    sleep: bool = False
    """Engines release their GPU memory while the trainers work (GPUs, staleness 0)."""
    transport: str = "shm"
    """How weights travel from the trainer to the engines: shm (shared memory, one node) | gloo (CPU
    tensors over the network) | nccl (GPU to GPU) | package.module:NAME of your own."""
    parity_tolerance: float = positive(1e-4)
    """Maximum |trainer - engine| of the logprobs after each weight sync, in nats."""
    parity_prompts: int = positive(8)
    """Probe prompts per engine and weight sync."""
    parity_tokens: int = positive(4)
    """Probe tokens per prompt; each costs one engine step."""

"""Settings of the trainers and of the rollout engines."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from orchestrator.config.ranges import at_least, below_one, between, fraction, positive
from workers.errors import ConfigError


class Transport(Enum):
    """How weights travel from the policy trainer to the rollout engines."""

    shm = "shm"  # one node
    gloo = "gloo"  # CPU tensors over the network
    nccl = "nccl"  # GPU to GPU


class RolloutEngine(Enum):
    """What generates."""

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
    cosine = "cosine"  # to `min_learning_rate_ratio` of the peak


class Offload(Enum):
    """What a trainer keeps in host memory while it is not in use."""

    none = "none"
    optimizer = "optimizer"  # optimizer state; the update is computed on the host
    parameters = "parameters"  # weights as well; ZeRO-3 only


class Packing(Enum):
    """How sequences are laid before trainers, reference and reward model."""

    auto = "auto"  # end to end, without padding, where the family is known to keep them apart
    off = "off"  # a padded row each


@dataclass(slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    learning_rate: float = positive(1e-5)
    beta1: float = below_one(0.9)
    beta2: float = below_one(0.95)
    eps: float = positive(1e-5)
    weight_decay: float = at_least(0, 0.0)
    max_grad_norm: float = positive(1.0)
    schedule: Schedule = Schedule.cosine
    warmup_steps: int = at_least(0, 0)
    # of the peak, at the first step; 0 = 1 / warmup_steps
    warmup_start_ratio: float = fraction(0.0)
    min_learning_rate_ratio: float = fraction(0.1)


@dataclass(slots=True, kw_only=True)
class TrainerConfig:
    """DeepSpeed settings shared by the policy and the critic trainers."""

    # 1, 2 or 3; 0 would report no gradient norm, and let NaN into the weights
    zero_stage: int = between(1, 1, 3)
    precision: Precision = Precision.fp32
    # token budget of one forward and backward pass, padding included
    micro_batch_tokens: int = positive(4096)
    packing: Packing = Packing.auto  # reference and reward model follow it
    # fp32 logits that exist at once; log-probabilities of more tokens are taken in chunks, and
    # computed again in the backward pass. The reference follows it
    logits_mib: int = positive(256)
    # ZeRO-3 gathers weights for a sync in buckets of this size
    weight_bucket_mib: int = positive(64)
    offload: Offload = Offload.none
    # optimizer state moves to host memory while engines work, and back for the update; needs
    # rollout.sleep, and ZeRO-2, or ZeRO-1 in fp32
    rest_on_host: bool = False

    def check(self, key: str) -> None:
        """Whether the ZeRO stage can offload weights."""
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
    precision: Precision = Precision.fp32
    temperature: float = positive(1.0)
    max_prompt_tokens: int = positive(64)
    max_response_tokens: int = positive(24)
    max_concurrent_sequences: int = positive(128)  # per engine
    kv_cache_mib: int = positive(64)  # CPU engines
    gpu_memory_fraction: float = fraction(0.5)  # GPU engines
    tensor_parallel_size: int = positive(1)
    prefix_caching: bool = True
    enforce_eager: bool = True
    # sequences that leave the engines as soon as so many are done; 0 = all of a batch together
    stream_sequences: int = at_least(0, 0)
    # more prompts than needed, as a share of them; the last to finish are aborted and recorded
    overprovision: float = at_least(0, 0.0)
    # a batch that is asked for while another is sampled joins it and fills the places of finished
    # sequences (staleness > 0); false: one after the other, bit-identical in every run
    join_running: bool = False
    # new weights reach engines in the middle of sequences, which go on under them (staleness > 0)
    inflight_updates: bool = False
    # engines give their GPU memory to the trainers while these work (GPUs, staleness 0)
    sleep: bool = False
    transport: Transport = Transport.shm
    parity_tolerance: float = positive(1e-4)  # nats, max |trainer - engine| after each sync
    parity_prompts: int = positive(8)  # probe prompts per engine and sync
    parity_tokens: int = positive(4)  # probe tokens per prompt: each costs one step of the engine

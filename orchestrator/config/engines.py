"""Settings of the trainers and of the rollout engines."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from orchestrator.config.ranges import at_least, below_one, between, fraction, positive
from workers.errors import ConfigError


class Transport(Enum):
    """How weights travel from the policy trainer to the rollout engines."""

    shm = "shm"  # shared memory, one node only
    gloo = "gloo"  # CPU tensors over the network
    nccl = "nccl"  # GPU to GPU


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
    cosine = "cosine"  # decays to `min_learning_rate_ratio` of the peak


class Offload(Enum):
    """What a trainer keeps in host memory instead of GPU memory."""

    none = "none"
    optimizer = "optimizer"  # the optimizer state; the update is computed on the CPU
    parameters = "parameters"  # the weights as well; ZeRO-3 only


class Packing(Enum):
    """How sequences are batched for the trainers, the reference and the reward model."""

    # concatenated without padding, for model families known to keep packed sequences separate
    auto = "auto"
    off = "off"  # one padded row per sequence


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
    # learning rate of the first step as a fraction of the peak; 0 = 1 / warmup_steps
    warmup_start_ratio: float = fraction(0.0)
    min_learning_rate_ratio: float = fraction(0.1)  # of the peak, at the end of the schedule


@dataclass(slots=True, kw_only=True)
class TrainerConfig:
    """DeepSpeed settings shared by the policy and the critic trainers."""

    # 1, 2 or 3; stage 0 reports no gradient norm and would let NaN into the weights
    zero_stage: int = between(1, 1, 3)
    precision: Precision = Precision.fp32
    # maximum tokens per micro-batch (one forward and backward pass), padding included
    micro_batch_tokens: int = positive(4096)
    packing: Packing = Packing.auto  # also applies to the reference and the reward model
    # maximum size of the fp32 logits in memory; logprobs of more tokens are computed in chunks,
    # and again in the backward pass. Also applies to the reference
    logits_mib: int = positive(256)
    # bucket size in which ZeRO-3 gathers weights for a weight sync
    weight_bucket_mib: int = positive(64)
    offload: Offload = Offload.none  # kept in host memory: none | optimizer | parameters
    # move the optimizer state to host memory during generation, and back for the update; needs
    # rollout.sleep, and ZeRO-2, or ZeRO-1 in fp32
    rest_on_host: bool = False

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
    precision: Precision = Precision.fp32
    temperature: float = positive(1.0)
    max_prompt_tokens: int = positive(64)
    max_response_tokens: int = positive(24)
    max_concurrent_sequences: int = positive(128)  # per engine
    kv_cache_mib: int = positive(64)  # per engine; CPU engines only
    gpu_memory_fraction: float = fraction(0.5)  # of each GPU's memory; GPU engines only
    tensor_parallel_size: int = positive(1)  # GPUs per engine
    prefix_caching: bool = True
    enforce_eager: bool = True
    # return finished sequences in groups of this many; 0 = return each batch when it is complete
    stream_sequences: int = at_least(0, 0)
    # extra prompts per batch, as a fraction of the prompts needed; the sequences that finish last
    # are aborted and recorded
    overprovision: float = at_least(0, 0.0)
    # true: a batch requested while another is being generated starts at once, in the slots of
    # finished sequences (staleness > 0); false: one batch after the other, bit-reproducible
    join_running: bool = False
    # with staleness > 0: sync new weights while sequences are being generated; these continue with
    # the new weights
    inflight_updates: bool = False
    # engines release their GPU memory while the trainers work (GPUs, staleness 0)
    sleep: bool = False
    transport: Transport = Transport.shm  # of weights to the engines: shm | gloo | nccl
    # maximum |trainer - engine| of the logprobs after each weight sync, in nats
    parity_tolerance: float = positive(1e-4)
    parity_prompts: int = positive(8)  # probe prompts per engine and weight sync
    parity_tokens: int = positive(4)  # probe tokens per prompt; each costs one engine step

"""Set-up of the roles: plain records that the driver derives from the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Dtype = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda"]
Rest = Literal["none", "cache", "state"]


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """One generation engine."""

    checkpoint: str  # Hugging Face folder: architecture and initial weights
    engine: Literal["vllm", "transformers"]
    dtype: Dtype
    device: Device
    max_prompt_tokens: int
    max_response_tokens: int
    max_concurrent_sequences: int
    kv_cache_bytes: int  # CPU engines
    gpu_memory_fraction: float  # GPU engines
    tensor_parallel_size: int
    prefix_caching: bool
    enforce_eager: bool
    seed: int
    eos_token_id: int
    threads: int = 1  # CPU engines: OpenMP threads
    collective_seconds: float = 300.0  # timeout per operation of a weight transfer
    interruptible: bool = False  # sequences can be interrupted and continued under other weights
    join_running: bool = False  # queued calls are sampled along with the running one
    sleep: bool = False  # can release its GPU memory to other roles while it samples nothing
    vocabulary: int = 0  # ids of this value and above are not tokens, never drawn; 0 = no limit
    transport_folder: str = ""  # first folder of the search for a user's weight transport


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """Settings that are fixed for the life of a trainer process."""

    zero_stage: int
    dtype: Dtype
    device: Device
    threads: int
    collective_seconds: float  # timeout of every collective
    weight_bucket_bytes: int
    seed: int
    skip_non_finite: bool = False  # skip steps with a non-finite loss or gradient, and continue
    offload: Literal["none", "optimizer", "parameters"] = "none"  # what ZeRO keeps in host memory
    # GPU memory that a rank releases while engines sample: none, torch's cache, or also the
    # optimizer state, which is then in host memory until the next update.
    rest: Rest = "none"
    transport_folder: str = ""  # as in RolloutSpec


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """AdamW and its schedule over `total_steps` optimizer steps."""

    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    max_grad_norm: float
    schedule: Literal["constant", "linear", "cosine"]
    warmup_steps: int
    min_learning_rate_ratio: float
    total_steps: int
    warmup_start_ratio: float = 0.0  # fraction of the peak at the first step; 0 = 1 / warmup_steps


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """Low-rank adapters: W + alpha / rank * B A, of which only A and B train."""

    rank: int
    alpha: float
    dropout: float  # on an adapter's input; off in RL
    target: tuple[str, ...]  # names of linear layers, or ("all-linear",)


@dataclass(frozen=True, slots=True)
class PartSpec:
    """An extension that workers import: an advantage estimator or a policy loss."""

    name: str  # of a module in the package of its kind, or "package.module:NAME"
    folder: str = ""  # first folder of the search for `package.module`


@dataclass(frozen=True, slots=True)
class TrainModelSpec:
    """A model to train; loading it replaces the process's previous model."""

    checkpoint: str
    optimizer: OptimizerSpec
    threads: int = 0  # processor threads while it is loaded; 0 = those of the group
    attention: str = "sdpa"
    packed: bool = False  # sequences lie end to end in one row; needs sdpa
    logits_bytes: int = 256 << 20  # limit on fp32 logits in memory at once
    gradient_checkpointing: bool = False
    ema_decay: float = 0.0
    # Scalar-head models only. "keep": the checkpoint must hold the head. "random": N(0, 1/(d+1)).
    # "zero": backbone from the checkpoint, head starts at 0 (value functions).
    head: Literal["keep", "random", "zero"] = "keep"
    lora: LoraSpec | None = None
    freeze: tuple[str, ...] = ()  # name patterns of weights that do not train
    dropout: float | None = None  # None = as the checkpoint's configuration says
    vocabulary: int = 0  # as in RolloutSpec: logprobs of sampled tokens exclude these ids too
    # Of the policy in PPO; imported with the model, so that a missing module ends the run at once.
    estimator: PartSpec | None = None
    policy_loss: PartSpec | None = None


@dataclass(frozen=True, slots=True)
class FrozenModelSpec:
    """A model for inference only."""

    checkpoint: str
    dtype: Dtype
    device: Device
    threads: int
    micro_batch_tokens: int
    attention: str = "sdpa"
    packed: bool = False  # as in TrainModelSpec
    logits_bytes: int = 256 << 20
    vocabulary: int = 0  # as in TrainModelSpec


@dataclass(frozen=True, slots=True)
class TermSpec:
    """One term of the reward."""

    source: str  # name of a module in workers/scorers/, or "package.module:NAME"
    # Values of the source's settings. A process can read them before it imports a user's module.
    settings: Mapping[str, Any]
    name: str = ""  # "" = the only reward of a run without terms
    weight: float = 1.0  # 0 = only measured


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """The sources of rewards, and what the run gives them; see `workers.scorers.source`."""

    terms: tuple[TermSpec, ...]
    folder: str  # first folder of the search for a user's modules
    policy_checkpoint: str  # the rollouts use its tokenizer
    model: FrozenModelSpec | None = None  # the reward model; None if no source needs one
    # Values of the environment variables that the source needs; never written or shown.
    secrets: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    normalised: bool = False  # each term is whitened before the sum
    step_separator: str = ""  # between the steps of a response; "" = a reward per response alone
    overlaps: bool = False  # calls run at the same time: a source waits for others' servers


@dataclass(frozen=True, slots=True)
class ShapingSpec:
    """How scores become token rewards and advantages."""

    kl_coefficient: float  # 0 if the KL penalty is a term of the loss
    gamma: float
    lam: float
    estimator: PartSpec
    keeps_reference: bool = False  # the loss needs the reference's log-probabilities


@dataclass(frozen=True, slots=True)
class PreferenceSpec:
    """The loss of a policy that is trained on rankings; see `workers.ops.preferences`."""

    loss: Literal["dpo", "ipo", "simpo"]
    beta: float
    margin: float
    label_smoothing: float
    robust: bool
    pairs: Literal["all", "best_worst", "adjacent"]
    sft_coefficient: float  # weight of the mean loss per token of the best completion


@dataclass(frozen=True, slots=True)
class PolicyLossSpec:
    """The policy's loss; whitening moments are those of the whole batch over all shards."""

    clip: float  # the ratio's lower bound is 1 - clip
    temperature: float
    advantage_mean: float  # 0 and 1 when whitening is off
    advantage_std: float
    ptx_coefficient: float = 0.0
    importance_cap: float | None = None  # most trainer / engine probability per token; None = off
    importance_floor: float = 0.0  # least of it
    importance_outside: Literal["bound", "drop"] = "bound"  # tokens beyond: weight bounded, or 0
    policy_loss: PartSpec = PartSpec("clip")
    clip_high: float | None = None  # the ratio's upper bound is 1 + clip_high; None = clip
    dual_clip: float | None = None  # see `workers.ops.surrogates.Clip`
    aggregate: Literal["tokens", "sequences", "constant"] = "tokens"
    max_response_tokens: int = 1  # divisor of aggregate "constant"
    # Of the KL term of the loss; 0 if the penalty is in the reward.
    kl_coefficient: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """What answers the policy between its turns."""

    kind: Literal["function", "tools"]
    factory: str  # "package.module:make"
    tools: tuple[str, ...]
    call: Literal["json", "words"]
    folder: str  # first folder of the search for modules of the user
    step_seconds: float  # deadline of a step, and of making an environment
    slice_seconds: float  # a call to a worker begins no further step after this time
    rewarded: bool  # the run's reward takes the rewards of the environment
    tokenizer: str  # folder with the policy's tokenizer
    chat_template: str
    add_bos_token: Literal["auto", "always", "never"]
    date: str
    role: str  # of an observation in the dialogue
    turn_text: str  # with {observation}, in place of the chat template's turn; "" = that turn

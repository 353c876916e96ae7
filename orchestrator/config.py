"""The typed schema of a run. YAML in conf/ composes it; inside the code only these classes appear.

Units are in the names or the comments: prompts, sequences, tokens, seconds. Ranges are declared
with the fields (orchestrator.ranges) and checked when a Config is made, and so is what a section's
`check` compares; checks across groups live in `orchestrator.plan`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, cast

from orchestrator.data_sets import data_set
from orchestrator.ranges import (
    any_seed,
    at_least,
    below_one,
    between,
    check_tree,
    fraction,
    name,
    needed,
    path,
    positive,
    seconds,
    secret,
    words,
)
from workers.errors import ConfigError


class StageName(Enum):
    """The stages of the recipe, in the order in which they depend on each other."""

    pretrain = "pretrain"
    sft = "sft"
    reward_model = "reward_model"
    ppo = "ppo"
    ppo_ptx = "ppo_ptx"
    pretrain_large = "pretrain_large"
    evaluate = "evaluate"


class RoleName(Enum):
    """The role groups; each is one or more actor processes."""

    rollout = "rollout"
    reward = "reward"
    reference = "reference"
    policy = "policy"
    critic = "critic"


class Accelerator(Enum):
    """What the roles compute on."""

    cpu = "cpu"
    cuda = "cuda"


class Placement(Enum):
    """How bundles of a role group are spread over nodes."""

    packed = "packed"  # as few nodes as possible
    apart = "apart"  # every role group on nodes of its own where there are enough


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


class Attention(Enum):
    """What computes attention in trainers and frozen models: transformers' implementations."""

    sdpa = "sdpa"  # PyTorch's own kernels
    eager = "eager"  # plain matrix products; every family has it
    flash_attention_2 = "flash_attention_2"  # GPU, extra package
    flash_attention_3 = "flash_attention_3"  # GPU, extra package
    flex_attention = "flex_attention"


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


class OldLogprobs(Enum):
    """Whose log-probabilities PPO compares the new ones with."""

    trainer = "trainer"  # computed anew before the first update
    rollout = "rollout"  # the engine's own, as it sampled; saves that pass


class CriticInit(Enum):
    """Where the value function starts."""

    reward_model = "reward_model"  # as InstructGPT's; the SFT model where a function rewards
    sft = "sft"  # with a head of zeros


class OnNonFinite(Enum):
    """What a NaN or an infinity in training leads to; the culprits are kept in samples/ first."""

    stop = "stop"
    skip = "skip"  # the optimizer step; before the update: like roll_back
    roll_back = "roll_back"  # to the newest checkpoint, and leave the culprits out


class OnLimit(Enum):
    """What a policy that has moved too far leads to."""

    stop = "stop"
    roll_back = "roll_back"  # to the newest checkpoint, with twice the KL coefficient from there


class Best(Enum):
    """Which value of a metric is the best."""

    highest = "highest"
    lowest = "lowest"


class KLControl(Enum):
    """How the KL coefficient moves."""

    fixed = "fixed"
    adaptive = "adaptive"


class RewardKind(Enum):
    """Where rewards come from."""

    model = "model"
    function = "function"


class JudgeKind(Enum):
    """Who decides which of two answers is preferred in the evaluation."""

    auto = "auto"  # the gold labeler where there is one, else the reward of the run
    none = "none"  # nobody: no win rates
    reward_model = "reward_model"  # judge_checkpoint, or the reward model of the run
    function = "function"  # judge_function
    endpoint = "endpoint"  # a chat model behind a URL


class TextBridge(Enum):
    """How policy tokens reach the reward model."""

    tokens = "tokens"  # token ids as they are; both models must share a tokenizer
    text = "text"  # decode with the policy's tokenizer, encode with the reward model's


class DataSourceKind(Enum):
    """Where examples come from."""

    pocket = "pocket"
    files = "files"


class TrainOn(Enum):
    """Which turns of a dialogue are targets."""

    last = "last"  # the last assistant turn
    all = "all"  # every assistant turn


class AddBosToken(Enum):
    """Whether bare text begins with the beginning-of-sequence token; goes into the tokenizer."""

    auto = "auto"  # as the given tokenizer does by itself
    always = "always"
    never = "never"


class OnBadLine(Enum):
    """What a line that does not parse does to a run."""

    fail = "fail"
    drop = "drop"  # counted


class PersonalData(Enum):
    """What happens to training rows with e-mail addresses, phone or card numbers and the like."""

    keep = "keep"
    drop = "drop"  # counted by kind


class RowOrder(Enum):
    """The order in which demonstrations are trained on; rows of other kinds are always shuffled."""

    shuffled = "shuffled"  # each set permuted anew in each of its passes
    # `length_group_batches` batches at a time, sorted by length and cut anew; then these shuffled
    length_grouped = "length_grouped"


@dataclass(slots=True, kw_only=True)
class StageSteps:
    """One number for each stage that trains: optimizer steps, of PPO iterations."""

    pretrain: int = at_least(0, 250)
    sft: int = at_least(0, 50)
    reward_model: int = at_least(0, 50)
    ppo: int = at_least(0, 5)
    ppo_ptx: int = at_least(0, 5)
    pretrain_large: int = at_least(0, 250)


@dataclass(slots=True, kw_only=True)
class CheckpointConfig:
    """How often a run saves itself, and what it keeps.

    The end of a stage is always saved, and what the reward model learns from once it is labeled.
    """

    every_steps: int | None = at_least(0, None)  # in every stage; null = the numbers of stage_steps
    stage_steps: StageSteps = field(default_factory=StageSteps)  # 0 = not within the stage
    keep_last: int = positive(2)  # newest checkpoints that stay
    keep_every: int = at_least(0, 0)  # steps that this divides stay too; 0 = none
    keep_best: str = ""  # a metric of PPO, e.g. ppo/score_mean: its best checkpoint stays too
    best_is: Best = Best.highest

    def steps(self, stage: str) -> int:
        """Steps of a stage between two checkpoints; 0 = none within it."""
        if self.every_steps is not None:
            return self.every_steps
        return getattr(self.stage_steps, stage, 0)


@dataclass(slots=True, kw_only=True)
class SupervisionConfig:
    """When a worker counts as lost, and how often it is made anew."""

    # between two probes of a worker; all are asked, busy or not
    probe_seconds: float = seconds(10.0)
    probes_to_condemn: int = positive(3)  # unanswered in a row: it is lost after as many intervals
    # a busy worker without one model pass or engine step hangs
    stall_seconds: float = seconds(600.0)
    max_restarts: int = at_least(0, 3)  # of one worker within the window; 0 = a loss ends the run
    restart_window_seconds: float = seconds(3600.0)


class InputCheck(Enum):
    """How a run that goes on recognises the data, models and functions that it was given."""

    stat = "stat"  # size and time of change; files up to 64 MiB by content
    hash = "hash"  # all by content
    skip = "skip"


@dataclass(slots=True, kw_only=True)
class RunConfig:
    """Where the run writes, and how long anything may take."""

    # the run folder itself; conf/config.yaml adds experiment and time
    dir: str = path("outputs", needed=True)
    overwrite: bool = False  # allow a non-empty run folder
    plan_only: bool = False  # print the plan, look at all that is given, and stop
    role_start_seconds: float = seconds(300.0)  # deadline for a role to come up
    call_seconds: float = seconds(1800.0)  # deadline for one call to a role
    collective_seconds: float = seconds(300.0)  # deadline inside a collective
    # data, models and functions that have changed since the checkpoint are refused
    verify_inputs: InputCheck = InputCheck.stat
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    # from SIGTERM to the next step boundary; 0 = stop at once
    grace_seconds: float = seconds(30.0, or_none=True)


@dataclass(slots=True, kw_only=True)
class PocketModelConfig:
    """Size of a from-scratch Llama-architecture model of the pocket world."""

    hidden_size: int = positive(128, 1_000_000)
    layers: int = positive(4, 10_000)
    heads: int = positive(4, 10_000)
    kv_heads: int = positive(4, 10_000)
    intermediate_size: int = positive(352, 1_000_000)
    max_position_embeddings: int = positive(128)
    tie_word_embeddings: bool = True

    def check(self, key: str) -> None:
        """Whether heads divide the width."""
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ConfigError(
                f"hidden_size={self.hidden_size}, heads={self.heads}, kv_heads={self.kv_heads}",
                where=key,
                mend="hidden_size must be a multiple of heads, and heads of kv_heads",
            )


@dataclass(slots=True, kw_only=True)
class CheckpointPaths:
    """Given Hugging Face checkpoint folders; an empty one must be made by a stage of this run."""

    # where pretraining on files starts: fresh weights, or a model to go on with
    initial: str = path("")
    base: str = path("")
    sft: str = path("")
    reward_model: str = path("")
    ppo: str = path("")
    ppo_ptx: str = path("")
    large: str = path("")  # the bigger base model that pocket_scale compares with
    critic: str = path("")  # what the value function starts from, if not the reward model


@dataclass(slots=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters in SFT, reward model, policy and critic; never in pretraining."""

    rank: int = at_least(0, 0)  # 0 = off: every weight trains
    alpha: float = positive(16.0)  # the update is alpha / rank * B A
    dropout: float = fraction(0.0)  # of what enters an adapter; SFT and reward model only
    target: list[str] = field(default_factory=lambda: ["all-linear"])  # or names: [q_proj,v_proj]

    def check(self, key: str) -> None:
        """Whether any layer gets an adapter."""
        if not self.target:
            raise ConfigError(
                "no layer gets an adapter", where=f"{key}.target", mend="use [all-linear]"
            )


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """The policy's model: given checkpoints, or a pocket model made from scratch."""

    checkpoints: CheckpointPaths = field(default_factory=CheckpointPaths)
    pocket: PocketModelConfig = field(default_factory=PocketModelConfig)
    large: PocketModelConfig = field(default_factory=PocketModelConfig)  # stage pretrain_large
    attention: Attention = Attention.sdpa
    gradient_checkpointing: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    # Weights that do not train after pretraining: patterns of their names, or `embeddings`.
    freeze: list[str] = field(default_factory=list)

    def check(self, key: str) -> None:
        """Whether adapters leave anything to freeze."""
        if self.lora.rank and self.freeze:
            raise ConfigError(
                f"freeze={self.freeze} beside adapters, which freeze every weight already",
                where=f"{key}.freeze",
                mend="set model.lora.rank=0 or model.freeze=[]",
            )


@dataclass(slots=True, kw_only=True)
class FilesConfig:
    """One data set of weight 1 a key, and the token limits of all sets."""

    demonstrations: str = path("")
    rankings: str = path("")  # comparisons
    prompts: str = path("")
    evaluation_prompts: str = path("")
    pretraining: str = path("")
    max_prompt_tokens: int = positive(1024)  # longer prompts are dropped and counted
    max_completion_tokens: int = positive(1024)  # longer completions are cut and counted


@dataclass(slots=True, kw_only=True)
class PocketWorldConfig:
    """The miniature world: its seed and the labeler's noise."""

    seed: int = any_seed(0)
    # standard deviation added to the hidden score, per completion
    label_noise: float = at_least(0, 0.5)
    # completions whose noisy scores differ by less are ranked equal
    tie_width: float = at_least(0, 0.25)


def _check_date(date: str) -> None:
    try:
        datetime.fromisoformat(date or "2026-01-01")
    except ValueError as error:
        raise ConfigError(
            f"date={date!r} is no date", where="data.date", mend="write it as 2026-01-31"
        ) from error


@dataclass(slots=True, kw_only=True)
class DataConfig:
    """Where examples come from."""

    source: DataSourceKind = DataSourceKind.pocket
    pocket: PocketWorldConfig = field(default_factory=PocketWorldConfig)
    files: FilesConfig = field(default_factory=FilesConfig)
    # name -> DataSetConfig. Declared as Any because Hydra cannot add to a dictionary of dataclasses
    # from the command line; __post_init__ leaves DataSetConfig in it.
    sets: dict[str, Any] = field(default_factory=dict)
    # auto = the tokenizer's | default = the built-in one | a Jinja file
    chat_template: str = path("auto", needed=True)
    date: str = ""  # what chat templates are told; "" = the day of the run's start, kept with it
    add_bos_token: AddBosToken = AddBosToken.auto  # before bare text; auto = as the tokenizer does
    train_on: TrainOn = TrainOn.last
    on_bad_line: OnBadLine = OnBadLine.fail
    heldout_fraction: float = between(0, 0.1, 1)  # of users, or of prompts where no user is named
    # which part of that size; the folds of a cross-validation are disjoint
    heldout_fold: int = at_least(0, 0)
    # prompts that share so long a beginning are one; 0 = off
    dedup_prefix_characters: int = at_least(0, 0)
    max_rows_per_user: int = at_least(0, 0)  # of one kind; 0 = no limit (InstructGPT: 200)
    pii: PersonalData = PersonalData.keep  # training rows only
    order: RowOrder = RowOrder.shuffled
    length_group_batches: int = positive(50)  # batches sorted together when length_grouped
    # of tokenised rows that are kept for later commands; 0 = none are. Changes no result
    cache_mib: int = at_least(0, 2048)
    # processes that render and tokenise; 1 = the run's own. Changes no result
    workers: int = positive(1, 1024)

    def __post_init__(self) -> None:
        given = cast("object", self.sets)
        if not isinstance(given, dict):  # an interpolation may give anything
            raise ConfigError(
                f"data.sets={given!r} is no section of data sets",
                where="data.sets",
                mend="set data.sets.NAME.kind=demonstrations data.sets.NAME.path=FILE",
            )
        self.sets = {str(name): data_set(str(name), each) for name, each in self.sets.items()}

    def check(self, key: str) -> None:
        """Whether the date is one, and the fold exists."""
        _check_date(self.date)
        folds = int(1.0 / self.heldout_fraction + 1e-9)
        if not 0 <= self.heldout_fold < folds:
            raise ConfigError(
                f"heldout_fold={self.heldout_fold}: there are {folds} parts of "
                f"{self.heldout_fraction:g} of the rows",
                where=f"{key}.heldout_fold",
                mend=f"choose a fold from 0 to {folds - 1}",
            )


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
                mend="use trainer.zero_stage=3, or trainer.offload=optimizer",
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


@dataclass(slots=True, kw_only=True)
class RewardConfig:
    """Where PPO's rewards come from."""

    kind: RewardKind = RewardKind.model
    function: str = ""  # "package.module:callable" (prompts, responses) -> list[float]
    # deadline of one call of the function; 0 = none
    function_seconds: float = seconds(300.0, or_none=True)
    # for sequences on which it raised, was late, or gave no number
    function_retries: int = at_least(0, 1)
    # deducted from a function's reward for a response that was cut, in the function's own units
    function_missing_eos_penalty: float = at_least(0, 0.0)
    bridge: TextBridge = TextBridge.tokens
    micro_batch_tokens: int = positive(8192)  # token budget of one pass, of the reference model too


@dataclass(slots=True, kw_only=True)
class PretrainConfig:
    """Next-token training on the pocket world's web text, or on `data.files.pretraining`."""

    steps: int = positive(1500)
    documents_per_step: int = positive(32)
    row_tokens: int = positive(128)  # documents share rows of this length; ptx text too
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=3e-3, warmup_steps=50, weight_decay=0.01
        )
    )


@dataclass(slots=True, kw_only=True)
class SFTConfig:
    """Supervised fine-tuning on demonstrations; loss on response tokens only."""

    steps: int = positive(150)
    # passes over data.files.demonstrations instead of `steps`; 0 = `steps`
    epochs: int = at_least(0, 0)
    # rows of one optimizer step, pretraining text included
    demonstrations_per_step: int = positive(32)
    # share of these rows that is pretraining text (paper: .1)
    pretraining_fraction: float = fraction(0.0)
    # that text comes in full rows of pretrain.row_tokens tokens, not a document a row
    pretraining_full_rows: bool = False
    # demonstrations share rows of this many tokens, each attending to itself alone; 0 = off
    pack_tokens: int = at_least(0, 0)
    validation_demonstrations: int = positive(256)
    # paper: .2; 0 = off, null = as the checkpoint's config.json says
    dropout: float | None = fraction(None)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3, warmup_steps=10)
    )


@dataclass(slots=True, kw_only=True)
class RewardModelConfig:
    """Reward modelling on K-way rankings."""

    prompts: int = positive(2048)  # prompts to sample and label (pocket world)
    max_rankings: int = at_least(0, 0)  # training rankings used, the first of them; 0 = all
    min_completions: int = between(2, 4, 9)  # K is drawn per prompt from [min, max]
    max_completions: int = between(2, 9, 9)
    # share of completions sampled from the base model, rest from SFT
    base_fraction: float = fraction(0.25)
    # of the completions to rank; above 1 also shows odd ones, which PPO would stumble upon unjudged
    temperature: float = positive(1.0)
    heldout_prompts: int = positive(256)
    epochs: int = positive(1)
    prompts_per_step: int = positive(16)
    bias_demonstrations: int = positive(256)  # demonstrations whose mean score is set to 0
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3, warmup_steps=10)
    )

    def check(self, key: str) -> None:
        """Whether the bounds of K are in order."""
        if self.min_completions > self.max_completions:
            raise ConfigError(
                f"min_completions={self.min_completions}, max_completions={self.max_completions}",
                where=f"{key}.min_completions",
                mend="choose 2 <= min_completions <= max_completions <= 9",
            )


@dataclass(slots=True, kw_only=True)
class KLConfig:
    """Per-token KL penalty against the SFT model."""

    control: KLControl = KLControl.fixed
    coefficient: float = at_least(0, 0.05)  # reward units per nat; the start value when adaptive
    target: float = positive(6.0)  # nats a sequence (adaptive)
    horizon: int = positive(10_000)  # sequences (adaptive)
    # nats a sequence, mean of an iteration; above it `on_limit`; 0 = none
    limit: float = at_least(0, 0.0)
    on_limit: OnLimit = OnLimit.stop


@dataclass(slots=True, kw_only=True)
class PtxConfig:
    """Pretraining gradient mixed into PPO (InstructGPT, equation 2)."""

    coefficient: float = at_least(0, 0.5)  # weight of the mean token loss of pretraining text
    documents_per_episode: float = positive(1.0)
    # instead of documents: full rows of pretrain.row_tokens tokens, which documents fill end to
    # end; 0 = documents_per_episode
    rows_per_episode: float = at_least(0, 0.0)


@dataclass(slots=True, kw_only=True)
class AlgorithmConfig:
    """PPO as InstructGPT ran it. Batch sizes count sequences (episodes)."""

    iterations: int = positive(40)
    # iterations that generation runs ahead of training: sequences may be that many updates old
    staleness: int = at_least(0, 0)
    prompts_per_iteration: int = positive(128)
    samples_per_prompt: int = positive(1)
    sequences_per_minibatch: int = positive(32)  # one optimizer step each
    epochs: int = positive(1)  # passes over the batch
    gamma: float = fraction(1.0)
    lam: float = fraction(0.95)
    clip: float = positive(0.2)
    value_clip: float = positive(0.2)
    # each token's loss weighs min(trainer / engine probability, this); null = off, all weigh 1
    importance_cap: float | None = positive(None)
    whiten_advantages: bool = True
    # deducted from the score of a response that was cut, in standard deviations of the reward
    # model's scores; null = nothing. For functions: reward.function_missing_eos_penalty
    missing_eos_penalty: float | None = at_least(0, 1.0)
    old_logprobs: OldLogprobs = OldLogprobs.trainer
    kl: KLConfig = field(default_factory=KLConfig)
    ptx: PtxConfig = field(default_factory=PtxConfig)  # used by the stage ppo_ptx
    on_non_finite: OnNonFinite = OnNonFinite.stop  # in every stage that trains
    critic_init: CriticInit = CriticInit.reward_model
    # first iterations, in which only the critic learns
    critic_warmup_iterations: int = at_least(0, 0)
    # 0 = off; the saved policy is the average when on (paper: .992)
    ema_decay: float = below_one(0.0)
    # iterations between scores of held-out prompts, of the gold labeler where there is one, else of
    # the reward; 0 = never
    evaluate_every: int = at_least(0, 8)
    evaluation_prompts: int = positive(128)
    # texts of each iteration that samples/rollouts.jsonl keeps; null = all
    rollouts_kept: int | None = at_least(0, 4)
    policy_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=3e-4, schedule=Schedule.constant, warmup_steps=10
        )
    )
    critic_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=1e-3, schedule=Schedule.constant, warmup_steps=10
        )
    )

    def check(self, key: str) -> None:
        """Whether the policy learns at all, and the KL controller is stable."""
        if self.critic_warmup_iterations >= self.iterations:
            raise ConfigError(
                f"the critic alone learns in {self.critic_warmup_iterations} of {self.iterations} "
                "iterations",
                where=f"{key}.critic_warmup_iterations",
                mend=f"set it below {key}.iterations={self.iterations}",
            )
        sequences = self.prompts_per_iteration * self.samples_per_prompt
        if self.kl.control is KLControl.adaptive and sequences >= 5 * self.kl.horizon:
            raise ConfigError(
                f"horizon={self.kl.horizon} for {sequences} sequences an iteration: one update "
                "could turn the KL coefficient negative",
                where=f"{key}.kl.horizon",
                mend=f"set {key}.kl.horizon above {sequences // 5}",
            )


@dataclass(slots=True, kw_only=True)
class EndpointConfig:
    """A chat model behind an OpenAI-compatible URL that judges pairs of answers."""

    url: str = secret("")  # up to "/v1"; "/chat/completions" is added
    model: str = ""
    # environment variable that holds the key; "" = the endpoint asks for none
    key_variable: str = "OPENAI_API_KEY"
    instruction: str = words("")  # the question, with {prompt}, {first} and {second}
    request: str = words('{"temperature": 0, "max_tokens": 512}')  # JSON, sent with every question
    cache: str = path("outputs/judge_cache")  # folder of verdicts; what it holds is not asked again
    concurrency: int = positive(8, 10_000)  # questions at a time
    request_seconds: float = seconds(60.0)  # deadline of one answer
    retries: int = at_least(0, 5)  # after overload, server errors and broken connections
    backoff_seconds: float = seconds(1.0)  # before the first retry; doubles, at most a minute
    deadline_seconds: float = seconds(3600.0)  # for all questions of an evaluation
    # pairs without a verdict that are left out; more end the run
    failed_fraction: float = fraction(0.05)


@dataclass(slots=True, kw_only=True)
class LmEvalConfig:
    """Tasks of lm-evaluation-harness (extra `lm-eval`), run on each evaluated model, offline."""

    tasks: list[str] = field(default_factory=list)  # none = off
    task_folder: str = path("")  # YAML of your own tasks; "" = those of the package
    limit: int = at_least(0, 0)  # examples a task; 0 = all
    fewshot: int = at_least(-1, -1)  # examples in the prompt; -1 = as the task says
    batch_size: int = positive(8)  # sequences
    device: str = ""  # torch device; "" = that of the cluster
    deadline_seconds: float = seconds(7200.0)  # for all models together


@dataclass(slots=True, kw_only=True)
class EvaluateConfig:
    """Final comparison of all models of the run."""

    prompts: int = positive(1024)
    web_documents: int = positive(512)
    cloze_tasks: int = positive(256)
    samples_shown: int = positive(3)
    judge: JudgeKind = JudgeKind.auto
    judge_function: str = ""  # "package.module:callable" (prompts, a, b) -> list of 1, .5 or 0
    judge_checkpoint: str = path("")  # a reward model that PPO did not optimise
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    lm_eval: LmEvalConfig = field(default_factory=LmEvalConfig)


@dataclass(slots=True, kw_only=True)
class RoleResources:
    """How many workers a role has, and what each takes from Ray."""

    workers: int = positive(1, 10_000)
    cpus: float = at_least(0, 0.25)  # per worker
    gpus: float = at_least(0, 0.0)  # per worker
    threads: int = positive(1, 1024)  # OpenMP threads per worker

    def check(self, key: str) -> None:
        """Whether GPUs are shared or whole."""
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ConfigError(
                f"gpus={self.gpus:g}", where=f"{key}.gpus", mend="use whole GPUs above 1"
            )


@dataclass(slots=True, kw_only=True)
class RolesConfig:
    """Resources of each role group."""

    rollout: RoleResources = field(default_factory=RoleResources)
    reward: RoleResources = field(default_factory=RoleResources)
    reference: RoleResources = field(default_factory=RoleResources)
    policy: RoleResources = field(default_factory=RoleResources)
    critic: RoleResources = field(default_factory=RoleResources)

    def of(self, role: RoleName) -> RoleResources:
        """The resources of one role group."""
        return getattr(self, role.value)


@dataclass(slots=True, kw_only=True)
class ClusterConfig:
    """The Ray cluster, the shape of its nodes, and where roles go."""

    # "local" starts one on this machine; "auto" or HOST:PORT joins one
    address: str = needed("local")
    accelerator: Accelerator = Accelerator.cpu
    nodes: int = positive(1, 10_000)
    cpus_per_node: float = positive(2.0)
    gpus_per_node: int = at_least(0, 0, 1024)
    gpu_memory_gib: float = positive(80.0)  # of one GPU; the plan refuses models that cannot fit
    object_store_mib: int = positive(512)  # local only
    placement: Placement = Placement.packed
    roles: RolesConfig = field(default_factory=RolesConfig)


@dataclass(slots=True, kw_only=True)
class LoggerConfig:
    """Sinks beside metrics.jsonl."""

    live: bool = True  # live view on a terminal; plain lines elsewhere
    wandb: bool = False
    wandb_project: str = needed("rehearsal")
    wandb_mode: str = needed("offline")  # online | offline
    tensorboard: bool = False
    sink_seconds: float = seconds(5.0)  # a sink that takes longer is dropped, warned once

    def check(self, key: str) -> None:
        """Whether the mode is known."""
        if self.wandb_mode not in ("online", "offline"):
            raise ConfigError(
                f"wandb_mode={self.wandb_mode!r}",
                where=f"{key}.wandb_mode",
                mend="use online or offline",
            )


@dataclass(slots=True, kw_only=True)
class Config:
    """A whole run."""

    experiment: str = name("custom")
    seed: int = any_seed(0)
    # auto: run.dir; latest: of this experiment; a run folder or a checkpoint
    resume: str = path("")
    # run folder whose config.yaml is run again, in a new folder
    rerun: str = path("")
    stages: list[StageName] = field(default_factory=list)
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    def __post_init__(self) -> None:
        check_tree(self)

"""Settings of the stages that train: pretraining, SFT, reward model and PPO."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.config.engines import OptimizerConfig, Schedule
from orchestrator.config.ranges import at_least, below_one, between, fraction, positive, seconds
from workers.errors import ConfigError


class OldLogprobs(Enum):
    """Source of the old logprobs in PPO's probability ratio."""

    trainer = "trainer"  # computed by the policy trainer before the first update
    rollout = "rollout"  # the engine's, from sampling; saves the trainer's pass


class CriticInit(Enum):
    """Initial weights of the critic."""

    reward_model = "reward_model"  # as in InstructGPT; the SFT model if a function gives rewards
    sft = "sft"  # the SFT model with a value head of zeros


class OnNonFinite(Enum):
    """Reaction to NaN or infinity in training; the rows at fault are first saved in samples/."""

    stop = "stop"  # end the run
    skip = "skip"  # skip the optimizer step; if detected before the update, roll back
    roll_back = "roll_back"  # to the newest checkpoint, and leave out the rows that caused it


class OnLimit(Enum):
    """Reaction to a KL above the limit."""

    stop = "stop"  # end the run
    roll_back = "roll_back"  # to the newest checkpoint, and continue with twice the KL coefficient


class KLControl(Enum):
    """Whether the KL coefficient is fixed or adapted."""

    fixed = "fixed"
    adaptive = "adaptive"


class RewardKind(Enum):
    """Source of the rewards."""

    model = "model"
    function = "function"


class TextBridge(Enum):
    """How the policy's tokens are passed to the reward model."""

    tokens = "tokens"  # unchanged token ids; both models must share a tokenizer
    text = "text"  # decode with the policy's tokenizer, encode with the reward model's


@dataclass(slots=True, kw_only=True)
class RewardConfig:
    """The rewards of PPO: a reward model or a function."""

    kind: RewardKind = RewardKind.model
    function: str = ""  # "package.module:callable" (prompts, responses) -> list[float]
    # timeout per call of the function; 0 = none
    function_seconds: float = seconds(300.0, or_none=True)
    # retries for sequences whose call raised, timed out, or returned no number
    function_retries: int = at_least(0, 1)
    # subtracted from the function's reward of a truncated response, in the function's units
    function_missing_eos_penalty: float = at_least(0, 0.0)
    bridge: TextBridge = TextBridge.tokens  # input of the reward model: tokens | text
    micro_batch_tokens: int = positive(8192)  # per forward pass of the reward and reference models


@dataclass(slots=True, kw_only=True)
class PretrainConfig:
    """Next-token training on the pocket world's web text, or on `data.files.pretraining`."""

    steps: int = positive(1500)
    documents_per_step: int = positive(32)
    row_tokens: int = positive(128)  # documents are packed into rows of this length; also for ptx
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=3e-3, warmup_steps=50, weight_decay=0.01
        )
    )


@dataclass(slots=True, kw_only=True)
class SFTConfig:
    """Supervised fine-tuning on demonstrations; loss on response tokens only."""

    steps: int = positive(150)
    # passes over the demonstrations instead of `steps`; 0 = use `steps`
    epochs: int = at_least(0, 0)
    # rows per optimizer step, pretraining text included
    demonstrations_per_step: int = positive(32)
    # fraction of these rows that is pretraining text (paper: .1)
    pretraining_fraction: float = fraction(0.0)
    # true: pretraining text fills rows of pretrain.row_tokens tokens; false: one document per row
    pretraining_full_rows: bool = False
    # demonstrations are packed into rows of this many tokens and attend only to themselves; 0 = off
    pack_tokens: int = at_least(0, 0)
    validation_demonstrations: int = positive(256)
    # paper: .2; 0 = off, null = the value in the checkpoint's config.json
    dropout: float | None = fraction(None)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3, warmup_steps=10)
    )


@dataclass(slots=True, kw_only=True)
class RewardModelConfig:
    """Reward modelling on K-way rankings."""

    prompts: int = positive(2048)  # prompts to sample and label (pocket world)
    max_rankings: int = at_least(0, 0)  # use only this many training rankings, the first; 0 = all
    min_completions: int = between(2, 4, 9)  # K is drawn per prompt from [min, max]
    max_completions: int = between(2, 9, 9)
    # fraction of completions sampled from the base model; the rest come from the SFT model
    base_fraction: float = fraction(0.25)
    # of the sampled completions; above 1 adds unusual ones, which PPO may find later and which
    # the reward model would otherwise never have seen
    temperature: float = positive(1.0)
    heldout_prompts: int = positive(256)
    epochs: int = positive(1)
    prompts_per_step: int = positive(16)
    bias_demonstrations: int = positive(256)  # the bias is set so that their mean score is 0
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3, warmup_steps=10)
    )

    def check(self, key: str) -> None:
        """Check that min_completions <= max_completions."""
        if self.min_completions > self.max_completions:
            raise ConfigError(
                f"min_completions={self.min_completions}, max_completions={self.max_completions}",
                where=f"{key}.min_completions",
                fix="choose 2 <= min_completions <= max_completions <= 9",
            )


@dataclass(slots=True, kw_only=True)
class KLConfig:
    """Per-token KL penalty against the SFT model."""

    control: KLControl = KLControl.fixed
    coefficient: float = at_least(0, 0.05)  # reward units per nat; the initial value when adaptive
    target: float = positive(6.0)  # nats per sequence (adaptive)
    horizon: int = positive(10_000)  # sequences (adaptive)
    # mean KL of an iteration, in nats per sequence, above which `on_limit` applies; 0 = no limit
    limit: float = at_least(0, 0.0)
    on_limit: OnLimit = OnLimit.stop


@dataclass(slots=True, kw_only=True)
class PtxConfig:
    """Pretraining gradient mixed into PPO (InstructGPT, equation 2)."""

    coefficient: float = at_least(0, 0.5)  # weight of the mean token loss of pretraining text
    documents_per_episode: float = positive(1.0)
    # instead of documents: rows of pretrain.row_tokens tokens, filled with concatenated documents;
    # 0 = use documents_per_episode
    rows_per_episode: float = at_least(0, 0.0)


@dataclass(slots=True, kw_only=True)
class AlgorithmConfig:
    """PPO as in InstructGPT. Batch sizes count sequences (episodes)."""

    iterations: int = positive(40)
    # iterations by which generation runs ahead of training: sequences may be this many updates old
    staleness: int = at_least(0, 0)
    prompts_per_iteration: int = positive(128)
    samples_per_prompt: int = positive(1)
    sequences_per_minibatch: int = positive(32)  # one optimizer step per minibatch
    epochs: int = positive(1)  # passes over the batch of an iteration
    gamma: float = fraction(1.0)
    lam: float = fraction(0.95)
    clip: float = positive(0.2)
    value_clip: float = positive(0.2)
    # weight of a token's loss: min(trainer / engine probability, this); null = weight 1
    importance_cap: float | None = positive(None)
    whiten_advantages: bool = True
    # subtracted from the score of a truncated response, in standard deviations of the reward
    # model's scores; null = nothing. For functions: reward.function_missing_eos_penalty
    missing_eos_penalty: float | None = at_least(0, 1.0)
    old_logprobs: OldLogprobs = OldLogprobs.trainer
    kl: KLConfig = field(default_factory=KLConfig)
    ptx: PtxConfig = field(default_factory=PtxConfig)  # used by the stage ppo_ptx
    on_non_finite: OnNonFinite = OnNonFinite.stop  # in every training stage
    critic_init: CriticInit = CriticInit.reward_model
    # number of first iterations in which only the critic is trained
    critic_warmup_iterations: int = at_least(0, 0)
    # decay per step of an average of the policy weights, which is then the saved policy; 0 = off
    # (paper: .992)
    ema_decay: float = below_one(0.0)
    # iterations between evaluations on held-out prompts, scored by the gold labeler if there is
    # one, else by the reward; 0 = never
    evaluate_every: int = at_least(0, 8)
    evaluation_prompts: int = positive(128)
    # rollouts per iteration saved in samples/rollouts.jsonl; null = all
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
        """Check that the policy is trained at all, and that the KL controller is stable."""
        if self.critic_warmup_iterations >= self.iterations:
            raise ConfigError(
                f"the critic alone learns in {self.critic_warmup_iterations} of {self.iterations} "
                "iterations",
                where=f"{key}.critic_warmup_iterations",
                fix=f"set it below {key}.iterations={self.iterations}",
            )
        sequences = self.prompts_per_iteration * self.samples_per_prompt
        if self.kl.control is KLControl.adaptive and sequences >= 5 * self.kl.horizon:
            raise ConfigError(
                f"horizon={self.kl.horizon} for {sequences} sequences per iteration: one update "
                "could turn the KL coefficient negative",
                where=f"{key}.kl.horizon",
                fix=f"set {key}.kl.horizon above {sequences // 5}",
            )

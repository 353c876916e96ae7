"""Settings of the stages that train: pretraining, SFT, reward model and PPO."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.config.engines import OptimizerConfig, Schedule
from orchestrator.config.ranges import at_least, below_one, between, fraction, positive, seconds
from workers.errors import ConfigError


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


class KLControl(Enum):
    """How the KL coefficient moves."""

    fixed = "fixed"
    adaptive = "adaptive"


class RewardKind(Enum):
    """Where rewards come from."""

    model = "model"
    function = "function"


class TextBridge(Enum):
    """How policy tokens reach the reward model."""

    tokens = "tokens"  # token ids as they are; both models must share a tokenizer
    text = "text"  # decode with the policy's tokenizer, encode with the reward model's


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
                fix="choose 2 <= min_completions <= max_completions <= 9",
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
                fix=f"set it below {key}.iterations={self.iterations}",
            )
        sequences = self.prompts_per_iteration * self.samples_per_prompt
        if self.kl.control is KLControl.adaptive and sequences >= 5 * self.kl.horizon:
            raise ConfigError(
                f"horizon={self.kl.horizon} for {sequences} sequences an iteration: one update "
                "could turn the KL coefficient negative",
                where=f"{key}.kl.horizon",
                fix=f"set {key}.kl.horizon above {sequences // 5}",
            )

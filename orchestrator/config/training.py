"""Settings of the stages that train: pretraining, SFT, reward model and PPO."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from orchestrator.config.engines import OptimizerConfig, Schedule
from orchestrator.config.ranges import above_one, at_least, below_one, between, fraction, positive
from workers.errors import ConfigError
from workers.records.specs import PartSpec
from workers.training.estimator import Estimator, find_estimator


class OldLogprobs(Enum):
    """Source of the old logprobs in PPO's probability ratio."""

    auto = "auto"
    """The engine's in each iteration whose weight sync showed that both agree, else the trainer's.
    """
    trainer = "trainer"
    """Computed by the policy trainer before the first update."""
    rollout = "rollout"
    """The engine's, from sampling; saves the trainer's pass."""


class CriticInit(Enum):
    """Initial weights of the critic."""

    reward_model = "reward_model"
    """As in InstructGPT; the SFT model if a function gives rewards."""
    sft = "sft"
    """The SFT model with a value head of zeros."""


class OnNonFinite(Enum):
    """Reaction to NaN or infinity in training; the rows at fault are first saved in samples/."""

    stop = "stop"
    """End the run."""
    skip = "skip"
    """Skip the optimizer step; if detected before the update, roll back."""
    roll_back = "roll_back"
    """To the newest checkpoint, and leave out the rows that caused it."""


class OnLimit(Enum):
    """Reaction to a KL above the limit."""

    stop = "stop"
    """End the run."""
    roll_back = "roll_back"
    """To the newest checkpoint, and continue with twice the KL coefficient."""


class KLControl(Enum):
    """Whether the KL coefficient is fixed or adapted."""

    fixed = "fixed"
    adaptive = "adaptive"


class KLPlace(Enum):
    """Where the KL penalty acts."""

    reward = "reward"
    """Subtracted from the reward of each token."""
    loss = "loss"
    """A term of the policy's loss, as in GRPO."""


class KLEstimator(Enum):
    """Estimate of a token's KL from d = log(policy / reference), for a penalty in the loss."""

    k1 = "k1"
    """d; its gradient is 0 on average, so it penalises nothing: for comparisons."""
    k2 = "k2"
    """d^2 / 2; its gradient is that of the KL."""
    k3 = "k3"
    """exp(-d) - 1 + d, as in GRPO."""


class Aggregate(Enum):
    """How the losses of tokens are averaged over an optimizer step."""

    tokens = "tokens"
    """Mean over its tokens: long responses weigh more (PPO here, DAPO)."""
    sequences = "sequences"
    """Mean over its sequences of the means over their tokens (GRPO)."""
    constant = "constant"
    """Sum over its tokens, divided by sequences * rollout.max_response_tokens (Dr. GRPO)."""


class ImportanceOutside(Enum):
    """What happens to the weight of a token beyond its bounds."""

    bound = "bound"
    """It is set to the bound."""
    drop = "drop"
    """It is 0: the token does not train."""


class TrainingJudge(Enum):
    """Whether the judge of the evaluation also compares held-out answers during training."""

    function = "function"
    """If it is a function."""
    endpoint = "endpoint"
    """If it is a function or an endpoint, which is asked twice per prompt each time."""
    none = "none"
    """Never."""


@dataclass(slots=True, kw_only=True)
class PretrainConfig:
    """Next-token training on the pocket world's web text, or on `data.files.pretraining`."""

    steps: int = positive(1500)
    """Optimizer steps."""
    documents_per_step: int = positive(32)
    """Documents per optimizer step."""
    row_tokens: int = positive(128)
    """Documents are packed into rows of this length; also for ptx."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=3e-3, warmup_steps=50, weight_decay=0.01
        )
    )
    """AdamW and its schedule."""


class SFTBest(Enum):
    """Which of the weights of SFT are published."""

    none = "none"
    """The last."""
    loss = "loss"
    """Those of the lowest loss on held-out demonstrations."""
    reward_model = "reward_model"
    """Those whose answers to held-out prompts model.checkpoints.reward_model scores highest."""


@dataclass(slots=True, kw_only=True)
class SFTConfig:
    """Supervised fine-tuning on demonstrations; loss on response tokens only."""

    steps: int = positive(150)
    """Optimizer steps."""
    epochs: int = at_least(0, 0)
    """Passes over the demonstrations instead of `steps`; 0 = use `steps`."""
    demonstrations_per_step: int = positive(32)
    """Rows per optimizer step, pretraining text included."""
    pretraining_fraction: float = fraction(0.0)
    """Fraction of these rows that is pretraining text (paper: .1)."""
    pretraining_full_rows: bool = False
    """true: pretraining text fills rows of pretrain.row_tokens tokens; false: one document per row.
    """
    pack_tokens: int = at_least(0, 0)
    """Demonstrations are packed into rows of this many tokens and attend only to themselves; 0 =
    off."""
    validation_demonstrations: int = positive(256)
    """Held-out demonstrations for the validation loss."""
    keep_best: SFTBest = SFTBest.none
    """Which weights are published; those that were compared stay in checkpoints/sft_step_N."""
    keep_best_every: int = at_least(0, 0)
    """Optimizer steps between two weights that are compared; 0 = after each pass (`epochs`)."""
    dropout: float | None = fraction(None)
    """Dropout in this stage (paper: .2); 0 = off, null = as the checkpoint's config.json says."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3, warmup_steps=10)
    )
    """AdamW and its schedule."""

    def check(self, key: str) -> None:
        """Check that there are weights to compare."""
        if self.keep_best is SFTBest.none or self.epochs or self.keep_best_every:
            return
        raise ConfigError(
            f"keep_best={self.keep_best.value} compares the weights after each pass, and "
            f"{key}.steps={self.steps} counts no passes",
            where=f"{key}.keep_best_every",
            fix=f"set it to a number of steps, or set {key}.epochs",
        )


class Margin(Enum):
    """The margin by which the score of the better completion of a pair has to lead."""

    none = "none"
    """None."""
    ranks = "ranks"
    """The distance of the ranks, divided by K - 1."""
    likert = "likert"
    """A third of the distance of the ratings from 1 to 7, at most 1 (column likert)."""


@dataclass(slots=True, kw_only=True)
class RewardModelConfig:
    """Reward modelling on K-way rankings."""

    prompts: int = positive(2048)
    """Prompts to sample and label (pocket world)."""
    max_rankings: int = at_least(0, 0)
    """Use only this many training rankings, the first; 0 = all."""
    skip_rankings: int = at_least(0, 0)
    """Leave out this many training rankings before those that are used."""
    min_completions: int = between(2, 4, 9)
    """Smallest K; K is drawn per prompt from [min, max]."""
    max_completions: int = between(2, 9, 9)
    """Largest K."""
    base_fraction: float = fraction(0.25)
    """Fraction of completions sampled from the base model; the rest come from the SFT model."""
    temperature: float = positive(1.0)
    """Sampling temperature of the completions; above 1 adds unusual ones, which PPO may find later
    and which the reward model would otherwise never have seen."""
    heldout_prompts: int = positive(256)
    """Prompts whose rankings measure the reward model and do not train it."""
    epochs: int = positive(1)
    """Passes over the training rankings (paper: 1)."""
    prompts_per_step: int = positive(16)
    """Rankings per optimizer step."""
    margin: Margin = Margin.none
    """Margin in the loss of a pair (Llama 2, equation 2)."""
    bias_demonstrations: int = positive(256)
    """Demonstrations whose mean score becomes 0 through the bias."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3, warmup_steps=10)
    )
    """AdamW and its schedule."""

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
    """Whether the coefficient is fixed or adapted."""
    coefficient: float = at_least(0, 0.05)
    """Weight of the KL in the reward, in reward units per nat; the initial value when adaptive."""
    target: float = positive(6.0)
    """KL that the controller aims at, in nats per sequence (adaptive)."""
    horizon: int = positive(10_000)
    """Time scale of the controller, in sequences (adaptive)."""
    limit: float = at_least(0, 0.0)
    """Mean KL of an iteration, in nats per sequence, above which `on_limit` applies; 0 = no limit.
    """
    on_limit: OnLimit = OnLimit.stop
    """What happens above the limit."""
    place: KLPlace = KLPlace.reward
    """Whether the penalty is part of the reward or of the policy's loss."""
    estimator: KLEstimator = KLEstimator.k3
    """Estimate of the penalty in the loss; the reward uses k1."""

    def check(self, key: str) -> None:
        """Check that an adapted coefficient acts on the reward."""
        if self.place is KLPlace.loss and self.control is KLControl.adaptive:
            raise ConfigError(
                "an adaptive coefficient needs the penalty in the reward, and it is in the loss",
                where=f"{key}.control",
                fix=f"set {key}.control=fixed or {key}.place=reward",
            )


@dataclass(slots=True, kw_only=True)
class PtxConfig:
    """Pretraining gradient mixed into PPO (InstructGPT, equation 2)."""

    coefficient: float = at_least(0, 0.5)
    """Weight of the mean token loss of pretraining text."""
    documents_per_episode: float = positive(1.0)
    """Pretraining documents per trained sequence."""
    rows_per_episode: float = at_least(0, 0.0)
    """Instead of documents: rows of pretrain.row_tokens tokens, filled with concatenated documents;
    0 = use documents_per_episode."""


@dataclass(slots=True, kw_only=True)
class DynamicSamplingConfig:
    """Replacement of prompts whose samples all have the same reward, which teach nothing (DAPO)."""

    enabled: bool = False
    """Drop these prompts, and sample further ones until the iteration has as many as configured."""
    max_batches: int = positive(4)
    """Most batches of prompts per iteration, the first included; 1 = sample no further ones."""


@dataclass(slots=True, kw_only=True)
class OverlongConfig:
    """Penalty for responses that come close to the token limit (DAPO, equation 13)."""

    buffer_tokens: int = at_least(0, 0)
    """The penalty rises over this many last tokens below rollout.max_response_tokens; it replaces
    missing_eos_penalty; 0 = off."""
    penalty: float = at_least(0, 1.0)
    """Subtracted from the score of a response of full length, in reward units."""


@dataclass(slots=True, kw_only=True)
class AlgorithmConfig:
    """PPO as in InstructGPT. Batch sizes count sequences (episodes)."""

    iterations: int = positive(40)
    """Batches to sample and train on."""
    staleness: int = at_least(0, 0)
    """Iterations by which generation runs ahead of training: sequences may be this many updates
    old."""
    prompts_per_iteration: int = positive(128)
    """Prompts per batch."""
    samples_per_prompt: int = positive(1)
    """Responses per prompt."""
    sequences_per_minibatch: int = positive(32)
    """Sequences per optimizer step."""
    epochs: int = positive(1)
    """Passes over the batch of an iteration."""
    advantage: str = "gae"
    """Advantage estimator: gae, rloo, grpo, dr_grpo, reinforce_pp, reinforce_pp_baseline, distill,
    or package.module:NAME of your own. All but gae need no values, so the run has no critic."""
    policy_loss: str = "clip"
    """Surrogate loss of the policy: clip, gspo, cispo, or package.module:NAME of your own."""
    aggregate: Aggregate = Aggregate.tokens
    """How the losses of tokens are averaged."""
    gamma: float = fraction(1.0)
    """Discount per token."""
    lam: float = fraction(0.95)
    """Lambda of generalised advantage estimation: 1 = Monte Carlo returns, 0 = one step."""
    clip: float = positive(0.2)
    """Probability ratios are clipped to 1 - clip .. 1 + clip_high in the policy's loss."""
    clip_high: float | None = positive(None)
    """Upper side of the clip range; null = clip."""
    dual_clip: float | None = above_one(None)
    """A token of negative advantage A costs at most this times |A|; null = no limit."""
    value_clip: float = positive(0.2)
    """New values are clipped to this distance from the old ones in the critic's loss."""
    importance_cap: float | None = positive(None)
    """Weight of a token's loss: min(trainer / engine probability, this); null = weight 1."""
    importance_floor: float = at_least(0, 0.0)
    """Least weight of a token's loss, if importance_cap is set."""
    importance_outside: ImportanceOutside = ImportanceOutside.bound
    """What happens to the weight of a token beyond importance_cap or importance_floor."""
    whiten_advantages: bool = True
    """Advantages of a batch get mean 0 and standard deviation 1, where that is part of the
    estimator's method: gae, reinforce_pp, reinforce_pp_baseline, your own."""
    missing_eos_penalty: float | None = at_least(0, 1.0)
    """Subtracted from the score of a truncated response, in standard deviations of the reward
    model's scores; null = nothing. For other sources: reward.function_missing_eos_penalty."""
    overlong: OverlongConfig = field(default_factory=OverlongConfig)
    """Penalty for long responses."""
    dynamic_sampling: DynamicSamplingConfig = field(default_factory=DynamicSamplingConfig)
    """Replacement of prompts whose samples all have the same reward."""
    old_logprobs: OldLogprobs = OldLogprobs.auto
    """Source of the old logprobs in the probability ratio."""
    kl: KLConfig = field(default_factory=KLConfig)
    """KL penalty against the reference."""
    ptx: PtxConfig = field(default_factory=PtxConfig)
    """Pretraining gradient of the stage ppo_ptx."""
    on_non_finite: OnNonFinite = OnNonFinite.stop
    """Reaction to NaN or infinity, in every training stage."""
    critic_init: CriticInit = CriticInit.reward_model
    """Initial weights of the critic."""
    critic_warmup_iterations: int = at_least(0, 0)
    """Number of first iterations in which only the critic is trained."""
    ema_decay: float = below_one(0.0)
    """Decay per step of an average of the policy weights, which is then the saved policy; 0 = off
    (paper: .992)."""
    evaluate_every: int = at_least(0, 8)
    """Iterations between evaluations on held-out prompts, scored by the gold labeler if there is
    one, else by the reward; 0 = never. A judge may also compare: evaluation_judge."""
    evaluation_prompts: int = positive(128)
    """Held-out prompts answered and scored during training."""
    evaluation_judge: TrainingJudge = TrainingJudge.function
    """Whether evaluate.judge compares these answers with those before the first update."""
    policy_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=3e-4, schedule=Schedule.constant, warmup_steps=10
        )
    )
    """The policy's AdamW and its schedule."""
    critic_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=1e-3, schedule=Schedule.constant, warmup_steps=10
        )
    )
    """The critic's AdamW and its schedule."""

    @property
    def estimator(self) -> Estimator:
        """The estimator that `advantage` names.

        Raises:
            ConfigError: there is none of this name, or it cannot be imported.
        """
        return find_estimator(self.estimator_spec)

    @property
    def estimator_spec(self) -> PartSpec:
        """Where the workers find it."""
        return PartSpec(self.advantage, str(Path.cwd()))

    @property
    def policy_loss_spec(self) -> PartSpec:
        """Where the workers find the surrogate loss."""
        return PartSpec(self.policy_loss, str(Path.cwd()))

    def check(self, key: str) -> None:
        """Check the policy's training, the importance weights and the KL controller."""
        self._check_importance(key)
        self._check_dynamic_sampling(key)
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

    def _check_importance(self, key: str) -> None:
        floor, cap = self.importance_floor, self.importance_cap
        outside = self.importance_outside
        if cap is None and (floor or outside is not ImportanceOutside.bound):
            raise ConfigError(
                f"importance_floor={floor:g} and importance_outside={outside.value} need weights, "
                "and importance_cap=null turns them off",
                where=f"{key}.importance_cap",
                fix="set it, for example to 5",
            )
        if cap is not None and floor > cap:
            raise ConfigError(
                f"importance_floor={floor:g} is above importance_cap={cap:g}",
                where=f"{key}.importance_floor",
                fix="set it below the cap",
            )

    def _check_dynamic_sampling(self, key: str) -> None:
        if not self.dynamic_sampling.enabled:
            return
        if self.samples_per_prompt < 2:
            raise ConfigError(
                "dynamic sampling compares the samples of a prompt, and there is one per prompt",
                where=f"{key}.samples_per_prompt",
                fix="set it to 2 or more",
            )
        if self.staleness and self.dynamic_sampling.max_batches > 1:
            raise ConfigError(
                "further prompts cannot be sampled while later batches are sampled ahead "
                f"(staleness={self.staleness})",
                where=f"{key}.dynamic_sampling.max_batches",
                fix=f"set it to 1, or {key}.staleness=0",
            )

"""The product, the inputs and the roles of each stage."""

from __future__ import annotations

from orchestrator.batching.batch_sizes import ONLINE_STAGES, PPO_STAGES
from orchestrator.config.cluster import RoleName
from orchestrator.config.data import DataSourceKind
from orchestrator.config.evaluation import JudgeKind
from orchestrator.config.preference import PreferenceLoss
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.training import SFTBest

_PRODUCTS = {
    StageName.pretrain: "base",
    StageName.sft: "sft",
    StageName.reward_model: "reward_model",
    StageName.ppo: "ppo",
    StageName.ppo_ptx: "ppo_ptx",
    StageName.dpo: "dpo",
    StageName.online_dpo: "online_dpo",
    StageName.rejection_sampling: "rejection_sampling",
    StageName.pretrain_large: "large",
}

# The name by which a stage calls the model that it compares the policy with, where it is another
# one than the one that it starts from.
REFERENCE = "reference"
TEACHER = "teacher"

_SAMPLED_AND_SCORED = (RoleName.rollout, RoleName.reward)

# The roles of stages that call the same ones whatever the configuration.
_ROLES = {
    StageName.constitution: (RoleName.rollout,),
    StageName.overoptimization: _SAMPLED_AND_SCORED,
    StageName.rejection_sampling: (*_SAMPLED_AND_SCORED, RoleName.policy),
}

# The stages that train on rankings.
RANKING_STAGES = (StageName.reward_model, StageName.dpo)


def product(stage: StageName) -> str:
    """The name of the checkpoint that a stage produces, or ""."""
    return _PRODUCTS.get(stage, "")


def inputs(config: Config, stage: StageName, labeling: bool | None = None) -> tuple[str, ...]:
    """The names of the checkpoints that a stage starts from.

    Args:
        config: What it runs with.
        stage: The stage.
        labeling: Whether it samples and labels rankings; None: as `labels` says.
    """
    pocket = config.data.source is DataSourceKind.pocket
    if stage is StageName.pretrain:
        return () if pocket else ("initial",)
    if stage is StageName.sft:
        return ("base", "reward_model") if chooses_by_reward(config) else ("base",)
    if stage in RANKING_STAGES:
        sampling = labels(config, stage) if labeling is None else labeling
        sampled_from_base = sampling and config.reward_model.base_fraction > 0
        labeled_by = ("gold",) * (sampling and config.gold_model)
        return ("sft", *(("base",) * sampled_from_base), *labeled_by)
    if stage is StageName.constitution:
        return (config.constitution.model,)
    if stage is StageName.label:
        return (*config.label.models, *(("reward_model",) * config.label.scored))
    if stage is StageName.collect:
        scored = ("reward_model",) if collected_are_scored(config) else ()
        return (*config.collect.models, *scored)
    if stage is StageName.evaluate and config.evaluate.best_of:
        return ("sft", "reward_model") if config.reward.needs.model else ("sft",)
    if stage is StageName.overoptimization:
        return ("sft", "gold") if config.gold_model else ("sft",)
    if stage in ONLINE_STAGES:
        scored = is_rewarded(config, stage) and config.reward.needs.model
        taught = reference_of(config, stage) == TEACHER
        return ("sft", *(("reward_model",) * scored), *((TEACHER,) * taught))
    return ()


def chooses_by_reward(config: Config) -> bool:
    """Whether a reward model chooses the weights that SFT publishes."""
    return config.sft.keep_best is SFTBest.reward_model


def is_rewarded(config: Config, stage: StageName) -> bool:
    """Whether a stage learns from rewards; without, it has no reward role."""
    if stage in (StageName.online_dpo, StageName.rejection_sampling):
        return True
    return stage in PPO_STAGES and config.algorithm.estimator.needs_reward


def any_rewarded(config: Config) -> bool:
    """Whether any stage of the configuration trains on rewards; variants are left out."""
    return any(is_rewarded(config, stage) for stage in config.stage_names)


def reference_of(config: Config, stage: StageName) -> str:
    """The name of the checkpoint that the reference role holds where a policy is trained."""
    taught = stage in PPO_STAGES and config.algorithm.estimator.needs_teacher
    return TEACHER if taught else "sft"


def labels(config: Config, stage: StageName) -> bool:
    """Whether a stage samples and labels rankings, as the first that reads them does.

    None does in a run with the stage label.
    """
    if not config.samples_rankings or StageName.label in config.stages:
        return False
    first = next((each for each in config.stages if each in RANKING_STAGES), stage)
    return stage in RANKING_STAGES and stage == first


def collected_are_scored(config: Config) -> bool:
    """Whether a reward model scores what the stage collect samples, to find what is unsure."""
    trained = StageName.reward_model in config.stages[: _place(config, StageName.collect)]
    given = bool(config.model.checkpoints.reward_model) or trained
    return given and config.reward.needs.model


def _place(config: Config, stage: StageName) -> int:
    return config.stages.index(stage) if stage in config.stages else len(config.stages)


def stage_roles(
    config: Config, stage: StageName, labeling: bool | None = None
) -> tuple[RoleName, ...]:
    """The role groups that a stage calls; see `inputs`."""
    if stage in PPO_STAGES:
        absent = set() if config.algorithm.estimator.needs_values else {RoleName.critic}
        absent |= set() if is_rewarded(config, stage) else {RoleName.reward}
        absent |= set() if config.environment.on else {RoleName.environment}
        return tuple(role for role in RoleName if role not in absent)
    labeling = labels(config, stage) if labeling is None else labeling
    sampling = _SAMPLED_AND_SCORED[: labeling + config.gold_model] if labeling else ()
    if stage is StageName.reward_model:
        return (*sampling, RoleName.critic)
    if stage in _ROLES:
        return _ROLES[stage]
    if stage in (StageName.label, StageName.collect):
        scored = config.label.scored if stage is StageName.label else collected_are_scored(config)
        return (RoleName.rollout, *((RoleName.reward,) * scored))
    if stage is StageName.dpo:
        return (*sampling, *_compared(config), RoleName.policy)
    if stage is StageName.online_dpo:
        return (RoleName.rollout, RoleName.reward, *_compared(config), RoleName.policy)
    if stage is StageName.evaluate:
        return _evaluating(config)
    if stage is StageName.sft and chooses_by_reward(config):
        return (RoleName.rollout, RoleName.reward, RoleName.policy)
    return (RoleName.policy,)


def _evaluating(config: Config) -> tuple[RoleName, ...]:
    judge, pocket = config.evaluate.judge, config.data.source is DataSourceKind.pocket
    scored = judge is JudgeKind.reward_model or (judge is JudgeKind.auto and not pocket)
    scored = scored or bool(config.evaluate.best_of)
    talks = (RoleName.environment,) * config.environment.on
    return (RoleName.rollout, *((RoleName.reward,) * scored), RoleName.reference, *talks)


def _compared(config: Config) -> tuple[RoleName, ...]:
    """The role that a preference loss compares the policy with, if any."""
    return () if config.preference.loss is PreferenceLoss.simpo else (RoleName.reference,)

"""The typed configuration of a whole run, composed of the sections of this package.

Units are in the names or in the text below each field. Ranges are declared
with the fields (orchestrator.config.ranges); creating a Config checks them and calls each
section's `check`. Checks across sections are in `orchestrator.planning.plan`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator.config.cluster import ClusterConfig
from orchestrator.config.constitution import ConstitutionConfig
from orchestrator.config.data import DataConfig, DataSourceKind, kinds
from orchestrator.config.engines import RolloutConfig, TrainerConfig
from orchestrator.config.environment import EnvironmentConfig
from orchestrator.config.evaluation import CollectConfig, EvaluateConfig, JudgeKind
from orchestrator.config.model import ModelConfig
from orchestrator.config.overoptimization import GoldJudge, OveroptimizationConfig
from orchestrator.config.preference import PreferenceConfig
from orchestrator.config.ranges import any_seed, check_tree, name, path
from orchestrator.config.rejection import RejectionConfig
from orchestrator.config.reward import RewardConfig
from orchestrator.config.rounds.iterate import IterateConfig
from orchestrator.config.rounds.labels import LabelConfig
from orchestrator.config.run import LoggerConfig, RunConfig, StageName
from orchestrator.config.samples import SamplesConfig
from orchestrator.config.training import (
    AlgorithmConfig,
    PretrainConfig,
    RewardModelConfig,
    SFTConfig,
    TrainingJudge,
)
from orchestrator.config.variants import check_names
from workers.data.tokenize.data_sets import SetKind


def asked_while_learning(chosen: TrainingJudge) -> tuple[JudgeKind, ...]:
    """The judges that compare held-out answers while a policy learns, if the run has one."""
    return {
        TrainingJudge.function: (JudgeKind.function,),
        TrainingJudge.endpoint: (JudgeKind.function, JudgeKind.endpoint),
        TrainingJudge.none: (),
    }[chosen]


@dataclass(slots=True, kw_only=True)
class Config:
    """A whole run."""

    experiment: str = name("custom")
    """Name of the experiment: part of the run folder, found again by resume=latest."""
    seed: int = any_seed(0)
    """Seed of sampling, data order and initial weights."""
    resume: str = path("")
    """auto = the run in run.dir | latest = the newest run of this experiment | a run folder or
    checkpoint; "" = do not resume."""
    rerun: str = path("")
    """Run folder whose config.yaml is run again in a new folder; "" = off."""
    stages: list[str] = field(default_factory=list)
    """Stages to run, in order, and variants of them."""
    variants: dict[str, Any] = field(default_factory=dict)
    """Further runs of stages with other settings, by name: variants.NAME.stage, algorithm, set,
    from, reference, reward_model, rankings, demonstrations, seed_as (docs/variants.md)."""
    iterate: IterateConfig = field(default_factory=IterateConfig)
    """Rounds: stages that are run again, on answers of what they made (docs/iterated.md)."""
    run: RunConfig = field(default_factory=RunConfig)
    """Run folder, deadlines, checkpoints and supervision."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Given models, and how models compute."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data sets and what is done to their rows."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """DeepSpeed ZeRO, memory and batching of policy and critic."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Generation engines and weight sync."""
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    """What answers the policy between its turns (docs/environments.md)."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Source of the rewards."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """Stage pretrain."""
    sft: SFTConfig = field(default_factory=SFTConfig)
    """Stage sft."""
    constitution: ConstitutionConfig = field(default_factory=ConstitutionConfig)
    """Stage constitution."""
    label: LabelConfig = field(default_factory=LabelConfig)
    """Stage label."""
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    """Stage reward_model."""
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    """Stage dpo."""
    rejection: RejectionConfig = field(default_factory=RejectionConfig)
    """Stage rejection_sampling."""
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    """Stages ppo and ppo_ptx; online_dpo samples as it says."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    """Stage collect."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Stage evaluate."""
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    """Texts that are saved for people to read."""
    overoptimization: OveroptimizationConfig = field(default_factory=OveroptimizationConfig)
    """Stage overoptimization."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Nodes, and workers per role."""
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    """Where metrics are sent besides the run folder."""

    def __post_init__(self) -> None:
        self.stages = [*map(self._name, self.stages)]
        check_tree(self)

    def check(self, key: str) -> None:  # noqa: ARG002  the root has no key
        """Check the variants, and that `stages` names stages and variants."""
        check_names(self.stages, self.variants)

    @property
    def stage_names(self) -> list[StageName]:
        """The stages named in `stages`; variants are left out."""
        names = map(self._name, self.stages)
        return [name for name in names if isinstance(name, StageName)]

    def _name(self, name: str) -> str:
        plain = name in StageName.__members__ and name not in self.variants
        return StageName(name) if plain else name

    @property
    def gold_model(self) -> bool:
        """Whether a reward model gives the gold score, in place of the pocket world's labeler."""
        return self.overoptimization.gold is GoldJudge.reward_model

    @property
    def samples_rankings(self) -> bool:
        """Whether the rankings of the run are sampled and labeled, because none are given.

        In a run with the stage label that stage has them, and their number is not known before.
        """
        if StageName.label in self.stage_names:
            return False
        if self.data.source is DataSourceKind.pocket:
            return True
        return self.gold_model and SetKind.comparisons not in kinds(self.data)

    @property
    def training_judge(self) -> JudgeKind | None:
        """The judge that compares held-out answers while the policy learns; None: nobody does."""
        learning = {StageName.ppo, StageName.ppo_ptx, StageName.online_dpo}
        learning.add(StageName.rejection_sampling)
        if not self.algorithm.evaluate_every or not learning & set(self.stage_names):
            return None
        asked = asked_while_learning(self.algorithm.evaluation_judge)
        return self.evaluate.judge if self.evaluate.judge in asked else None

"""The typed configuration of a whole run, composed of the sections of this package.

Units are in the names or the comments: prompts, sequences, tokens, seconds. Ranges are declared
with the fields (orchestrator.config.ranges); creating a Config checks them and calls each
section's `check`. Checks across sections are in `orchestrator.planning.plan`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.config.cluster import ClusterConfig
from orchestrator.config.data import DataConfig
from orchestrator.config.engines import RolloutConfig, TrainerConfig
from orchestrator.config.evaluation import EvaluateConfig
from orchestrator.config.model import ModelConfig
from orchestrator.config.ranges import any_seed, check_tree, name, path
from orchestrator.config.run import LoggerConfig, RunConfig, StageName
from orchestrator.config.training import (
    AlgorithmConfig,
    PretrainConfig,
    RewardConfig,
    RewardModelConfig,
    SFTConfig,
)


@dataclass(slots=True, kw_only=True)
class Config:
    """A whole run."""

    experiment: str = name("custom")
    seed: int = any_seed(0)
    # auto = the run in run.dir | latest = the newest run of this experiment | a run folder or
    # checkpoint; "" = do not resume
    resume: str = path("")
    # run folder whose config.yaml is run again in a new folder; "" = off
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

"""One run of a stage, and the configuration that it runs with."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from orchestrator.config.cluster import RoleName
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.runs.settings import named_keys
from orchestrator.planning.stage_graph import REFERENCE, TEACHER

# The name by which a stage calls the model that it starts from; all others: "sft".
START = {StageName.pretrain: "initial", StageName.sft: "base"}


class StageConfig(Config):
    """The configuration of the stage runs that share its settings, in a run with variants.

    `stages` names the stages that its models come from and those that it is for.
    """

    __slots__ = ("roles", "whole")
    whole: Config  # of the run
    roles: frozenset[RoleName]  # of all stage runs


@dataclass(frozen=True, slots=True)
class StageRun:
    """One run of a stage."""

    name: str
    """Of its checkpoints, metrics and seeds."""
    stage: StageName
    config: Config
    """What it reads; of a run without variants, the run's own."""
    inputs: Mapping[str, str]
    """Name of a model in the stage's code -> the product that is read."""
    product: str
    """Name of the model that it makes; "" = none."""
    roles: tuple[RoleName, ...]
    """The role groups that it calls."""
    seed_as: str
    """The name in its seeds."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys that differ from the run's configuration."""
    kept: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys by which algorithms differ and which stay as the run has them."""
    variant: bool = False
    """Whether it is one, and no plain stage."""
    labels: bool = False
    """Whether it samples and labels the rankings that later stage runs read, too."""

    rankings: tuple[str, ...] = ()
    """The runs of the stage label whose rankings it trains on; () = those of the data source, or
    that the first stage samples."""
    demonstrations: tuple[str, ...] = ()
    """The runs of the stage constitution whose revisions it trains on; () = those of the data."""
    first_prompt: int = 0
    """Of a run of the stage label or constitution: number of the first prompt that no earlier one
    has asked."""
    earlier_labels: tuple[str, ...] = ()
    """Of a run of the stage label: those before it."""

    def key(self, key: str) -> str:
        """Where this run's own value of a key is set, for messages."""
        return f"variants.{self.name}.set.{key}" if self.variant else key

    @property
    def start(self) -> str:
        """The product whose weights it trains; "" = none."""
        return self.inputs.get(START.get(self.stage, "sft"), "")

    @property
    def compared_with(self) -> str:
        """The product that it compares the policy with, unless it starts from it; "" = none."""
        return self.inputs.get(TEACHER) or self.inputs.get(REFERENCE, "")

    @property
    def reads(self) -> tuple[str, ...]:
        """The products that it starts from."""
        return tuple(dict.fromkeys(self.inputs.values()))


def whole(config: Config) -> Config:
    """The configuration of the run that a stage run belongs to."""
    return config.whole if isinstance(config, StageConfig) else config


def named(run: StageRun) -> AbstractContextManager[None]:
    """Have errors name the keys of the variant, if the stage run is one."""
    return named_keys(run.name, run.changes) if run.variant else nullcontext()

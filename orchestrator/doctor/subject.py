"""What the checks look at: the run that is meant, its plan, and the answers of child processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.config.cluster import ClusterConfig, RoleName
from orchestrator.config.schema import Config
from orchestrator.planning.placement import Layout, place_roles
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.preflight import hub_models
from workers.errors import MissingCheckpointError, RehearsalError


class Answers(Protocol):
    """Steps of a child process, each with an answer."""

    def of(self, step: str) -> Any:
        """The answer of one step, as JSON has it; waits for it.

        Raises:
            RehearsalError: the step failed, or the process ended or hung before it was done.
        """
        ...


@dataclass(frozen=True, slots=True)
class Subject:
    """A run and this machine."""

    config: Config
    plan: Plan | None  # None: no experiment is given, or `trouble`
    layout: Layout | None  # of the plan, or of all roles without an experiment
    trouble: RehearsalError | None  # why there is no plan or no layout
    missing: MissingCheckpointError | None  # a model of the hub that the cache does not hold
    torch: Answers
    ray: Answers
    engine: Answers

    @property
    def local(self) -> bool:
        """Whether the run starts its own cluster on this machine."""
        return self.config.cluster.address == "local"


def make_subject(
    config: Config,
    torch: Answers,
    ray: Answers,
    engine: Answers,
    nodes: Callable[[ClusterConfig], str] | None = None,
) -> Subject:
    """Plan the run as far as possible; names of models are looked up in the local cache only.

    Args:
        config: The run; `stages` is empty where no experiment was given.
        torch: Answers about torch, collectives and GPUs.
        ray: Answers of the joined cluster.
        engine: Answers of a generation engine.
        nodes: Finds `cluster.sizes` where the configuration leaves it open.
    """
    plan, layout, trouble, missing = None, None, None, None
    try:
        hub_models.resolve(config, download=False)
    except MissingCheckpointError as error:
        missing = error
    try:
        if config.cluster.unknown and nodes:
            config.cluster.sizes = nodes(config.cluster)
        if config.stages:
            plan = make_plan(config)
        layout = plan.layout if plan else place_roles(config.cluster, _roles(config))
    except RehearsalError as error:
        trouble = error
    return Subject(config, plan, layout, trouble, missing, torch, ray, engine)


def _roles(config: Config) -> list[RoleName]:
    """All roles that a run of this configuration can have."""
    return [r for r in RoleName if r is not RoleName.environment or config.environment.on]

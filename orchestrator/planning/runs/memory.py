"""The memory of one worker of each role: that of the stage run that needs most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.config.cluster import RoleName
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.backbones import role_sizes
from orchestrator.planning.model_sizes import (
    ModelSize,
    RoleMemory,
    checkpoint_size,
    pocket_size,
    role_memory,
)
from orchestrator.planning.placement import Layout
from orchestrator.planning.runs.stage_run import StageRun

# Configuration, roles, size of the policy, and of what it is compared with if that is another one.
_User = tuple[Config, set[RoleName], ModelSize, ModelSize | None]


def most_memory(
    config: Config, runs: Sequence[StageRun], layout: Layout, size: ModelSize | None
) -> tuple[RoleMemory, ...]:
    """The memory of one worker of each role, if the size of the policy, `size`, is known."""
    if size is None:
        return ()
    most: dict[RoleName, RoleMemory] = {}
    for own, roles, policy, reference in _users(config, runs, size):
        sizes = role_sizes(own, policy, reference)
        for role in roles:
            if (held := sizes[role]) is None:
                continue
            found = role_memory(own, role, held)
            most[role] = max(most.get(role, found), found, key=lambda each: each.total)
    return tuple(most[role] for role in layout.roles if role in most)


def _users(config: Config, runs: Sequence[StageRun], size: ModelSize) -> Iterator[_User]:
    """Each different configuration and size, with the roles of its stage runs."""
    yield config, {role for run in runs if not run.variant for role in run.roles}, size, None
    makers = {run.product: run for run in runs if run.product}
    larger = [each for name in makers if (each := _pretrained_size(name, makers)) is not None]
    for run in runs:
        own = _pretrained_size(run.product, makers)
        if run.variant:
            reference = _compared(config, run.compared_with, makers)
            yield run.config, {*run.roles}, own or size, reference
        elif own:
            yield config, {*run.roles}, own, None
        elif run.stage is StageName.evaluate and larger:
            largest = max(larger, key=lambda each: each.parameters)
            yield config, {RoleName.rollout, RoleName.reference}, largest, None


def _compared(config: Config, name: str, makers: dict[str, StageRun]) -> ModelSize | None:
    """The size of what a policy is compared with, unless it has the policy's."""
    if (pretrained := _pretrained_size(name, makers)) is not None:
        return pretrained
    given = getattr(config.model.checkpoints, name, "") if name not in makers else ""
    return checkpoint_size(Path(given)) if given else None


def _pretrained_size(name: str, makers: dict[str, StageRun]) -> ModelSize | None:
    """The size of a product that comes from a larger base model which the run pretrains."""
    while (maker := makers.get(name)) is not None:
        if maker.stage is StageName.pretrain_large:
            own = maker.config
            return pocket_size(own.model.large, arithmetic=own.data.pocket.arithmetic)
        name = maker.start
    return None

"""How the stages reach the role groups of a run, without the back end that these run on."""

from __future__ import annotations

from typing import Protocol

from orchestrator.config.cluster import RoleName
from orchestrator.roles.rollout_group import RolloutGroup
from orchestrator.roles.scorer_groups import EnvironmentGroup, ReferenceGroup, RewardGroup
from orchestrator.roles.trainer_groups import CriticGroup, PolicyGroup
from workers.records.processes import RoleInfo


class Roles(Protocol):
    """The role groups of a run."""

    def bring_up(self, *names: RoleName) -> None:
        """Start the missing groups together; wait until trainers have formed process groups."""
        ...

    def release(self, *names: RoleName) -> None:
        """End those of these groups that are there; using one starts it again."""
        ...

    @property
    def rollout(self) -> RolloutGroup:
        """The generation engines; a stage starts them on a checkpoint."""
        ...

    @property
    def reward(self) -> RewardGroup:
        """The reward workers."""
        ...

    @property
    def reference(self) -> ReferenceGroup:
        """The frozen language models."""
        ...

    @property
    def policy(self) -> PolicyGroup:
        """The policy's trainers."""
        ...

    @property
    def critic(self) -> CriticGroup:
        """The scalar-head trainers."""
        ...

    @property
    def environment(self) -> EnvironmentGroup:
        """What answers the policy between its turns."""
        ...

    def infos(self) -> list[RoleInfo]:
        """Role, rank, process and node of every worker that was started."""
        ...

    def census(self) -> tuple[dict[str, int], int]:
        """Workers in use by role, and sequences that engines have not finished.

        Starts nothing and waits for nothing; any thread may call it.
        """
        ...

    def replace_lost(self) -> list[str]:
        """End every group that lost a worker, to restart on its next use; returns lost workers.

        Raises:
            RoleDiedError: a worker has used up its restarts.
        """
        ...

    def abandon(self) -> None:
        """Have engines drop what they sample for steps that will be repeated."""
        ...

    def look_after(self) -> None:
        """Probe all workers; the driver calls this during its own long work."""
        ...

    def holds(self, name: RoleName) -> bool:
        """Whether the group exists and so still holds what was last loaded into it."""
        ...

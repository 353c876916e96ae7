"""The role groups of a run, made when a stage first needs them and kept until the run ends.

Starting a role costs seconds of imports, loading another model into it costs milliseconds, so the
stages share the processes: the critic's trainers first train the reward model, the policy's first
pretrain and fine-tune.
"""

from __future__ import annotations

from typing import Any

from orchestrator.account import Account
from orchestrator.cluster import Cluster
from orchestrator.config import Config, RoleName
from orchestrator.derive import group_spec, rollout_environment
from orchestrator.roles import (
    CriticGroup,
    Launch,
    PolicyGroup,
    ReferenceGroup,
    RewardGroup,
    RolloutGroup,
)
from orchestrator.waiting import Position
from workers.messages import RoleInfo

_GROUPS = {
    RoleName.rollout: RolloutGroup,
    RoleName.reward: RewardGroup,
    RoleName.reference: ReferenceGroup,
    RoleName.policy: PolicyGroup,
    RoleName.critic: CriticGroup,
}


class Fleet:
    """Typed access to the role groups of one run."""

    def __init__(
        self, config: Config, cluster: Cluster, position: Position, account: Account
    ) -> None:
        self._account = account
        self._config = config
        self._cluster = cluster
        self._position = position
        self._groups: dict[RoleName, Any] = {}

    def bring_up(self, *names: RoleName) -> None:
        """Make the missing groups, all at the same time, and wait until their processes stand."""
        missing = [name for name in names if name not in self._groups]
        for name in missing:
            self._groups[name] = _GROUPS[name](self._launch(name))
        if RoleName.rollout in missing:
            # A run with engines spends most of its start on importing vLLM.
            self._groups[RoleName.rollout].prepare(self._config.rollout.engine.value)
        joining = [
            self._groups[name].join(group_spec(self._config, self._config.cluster.roles.of(name)))
            for name in missing
            if name in (RoleName.policy, RoleName.critic)
        ]
        for pending in joining:
            pending.result()

    def _launch(self, name: RoleName) -> Launch:
        extra = rollout_environment(self._config) if name is RoleName.rollout else {}
        return Launch(
            options=lambda rank: self._cluster.bundle(name, rank, extra),
            workers=self._config.cluster.roles.of(name).workers,
            start_seconds=self._config.run.role_start_seconds,
            call_seconds=self._config.run.call_seconds,
            position=self._position,
            account=self._account,
        )

    def _group(self, name: RoleName) -> Any:
        self.bring_up(name)
        return self._groups[name]

    @property
    def rollout(self) -> RolloutGroup:
        """The generation engines; a stage starts them on a checkpoint."""
        return self._group(RoleName.rollout)

    @property
    def reward(self) -> RewardGroup:
        """The reward workers."""
        return self._group(RoleName.reward)

    @property
    def reference(self) -> ReferenceGroup:
        """The frozen language models."""
        return self._group(RoleName.reference)

    @property
    def policy(self) -> PolicyGroup:
        """The policy's trainers."""
        return self._group(RoleName.policy)

    @property
    def critic(self) -> CriticGroup:
        """The scalar-head trainers."""
        return self._group(RoleName.critic)

    def infos(self) -> list[RoleInfo]:
        """Role, rank, process and node of every worker that was made."""
        return [
            info for name in RoleName if name in self._groups for info in self._groups[name].infos
        ]

"""The role groups of a run, started when a stage first needs them and kept until the run ends.

Starting a role costs seconds of imports, and loading another model into it costs milliseconds, so
the stages share the processes: the critic's trainers first train the reward model, and the policy's
trainers first pretrain and fine-tune.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.cluster.ray_cluster import Cluster
from orchestrator.config.by_name import from_sections
from orchestrator.config.cluster import RoleName
from orchestrator.config.schema import Config
from orchestrator.planning.worker_specs import group_spec, rollout_environment
from orchestrator.roles.group import Launch
from orchestrator.roles.rollout_group import RolloutGroup
from orchestrator.roles.scorer_groups import EnvironmentGroup, ReferenceGroup, RewardGroup
from orchestrator.roles.trainer_groups import CriticGroup, PolicyGroup
from orchestrator.run_files.folder import RunFolder, write_json
from orchestrator.supervision.heartbeats import Watch
from orchestrator.supervision.lost_workers import Losses
from orchestrator.supervision.pending import Position
from orchestrator.supervision.ray_backend import RayBackend
from orchestrator.supervision.server_guard import Guard
from orchestrator.supervision.worker_life import Rules
from orchestrator.telemetry.role_time import Account
from workers.errors import RehearsalError
from workers.records.processes import RoleInfo

GROUPS = {
    RoleName.rollout: RolloutGroup,
    RoleName.reward: RewardGroup,
    RoleName.reference: ReferenceGroup,
    RoleName.policy: PolicyGroup,
    RoleName.critic: CriticGroup,
    RoleName.environment: EnvironmentGroup,
}


def rules_of(config: Config) -> Rules:
    """When workers, and Ray's servers on other machines, count as lost."""
    supervision = config.run.supervision
    return from_sections(Rules, supervision, window_seconds=supervision.restart_window_seconds)


class Fleet:
    """Typed access to the role groups of one run."""

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        position: Position,
        account: Account,
        losses: Losses | None = None,
        guard: Guard | None = None,
    ) -> None:
        self._account = account
        self._config = config
        self._cluster = cluster
        self._position = position
        self._groups: dict[RoleName, Any] = {}
        self._losses = losses
        self.watch = Watch(
            rules_of(config),
            config.run.supervision.stall_seconds,
            logs=Path(config.run.dir).resolve() / "logs",
            guard=guard,
        )

    def bring_up(self, *names: RoleName) -> None:
        """Start the missing groups together; wait until trainers have formed process groups."""
        missing = [name for name in names if name not in self._groups]
        for name in missing:
            self._groups[name] = self._make(name)
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

    def release(self, *names: RoleName) -> None:
        """End those of these groups that are there; using one starts it again."""
        for name in filter(self.holds, names):
            self.watch.forget(self._names(name))
            self._groups.pop(name).kill()
            self._announce()

    def _make(self, name: RoleName) -> Any:
        return GROUPS[name](self._launch(name))

    def _launch(self, name: RoleName) -> Launch:
        rollout = name is RoleName.rollout
        extra = rollout_environment(self._config) if rollout else {}
        return Launch(
            backend=RayBackend(),
            options=lambda rank: self._cluster.bundle(name, rank, extra),
            workers=self._config.cluster.roles.of(name).workers,
            start_seconds=self._config.run.role_start_seconds,
            call_seconds=self._config.run.call_seconds,
            position=self._position,
            account=self._account,
            watch=self.watch,
            announce=self._announce,
            lost=self._lost,
            given_up=self._given_up,
            most=self._config.cluster.roles.rollout.max_workers if rollout else 0,
            room=self._cluster.room if rollout else None,
        )

    def _lost(self, worker: str, error: RehearsalError, discarded: int) -> None:
        if self._losses is not None:
            self._losses.add([worker], error, discarded)

    def _given_up(self, worker: str, error: RehearsalError) -> None:
        if self._losses is not None:
            self._losses.give_up(worker, error)

    def _announce(self) -> None:
        """Write each worker's process and node, for people and tools that look for them."""
        if self._losses is None:
            return  # roles without a run folder, such as those of benchmarks
        workers = [asdict(info) for info in self.infos()]
        write_json(RunFolder(Path(self._config.run.dir).resolve()).workers, workers)

    def replace_lost(self) -> list[str]:
        """End every group that lost a worker; its next use restarts it in the same places.

        Engines that an interrupted weight transfer left half loaded count as lost.

        Returns:
            The workers that were lost.

        Raises:
            RoleDiedError: a worker has used up its restarts.
        """
        everyone = [worker for name in self._groups for worker in self._names(name)]
        lost = self.watch.lost(everyone)
        self._end_lost(lost)
        # After the trainers: an engine may have been waiting for weights from a lost trainer.
        if RoleName.rollout in self._groups:
            engines = self._names(RoleName.rollout) if self._interrupt() else self._half_loaded()
            self._end_lost(engines)
            lost += engines
        return lost

    def _end_lost(self, lost: list[str]) -> None:
        for name in list(self._groups):
            gone = [worker for worker in self._names(name) if worker in lost]
            if gone:
                self._end(name, f"{gone[0]} was lost")

    def abandon(self) -> None:
        """Interrupt engines that still sample for steps that will be repeated.

        Raises:
            RoleDiedError: they cannot be interrupted, and have no restarts left.
        """
        error = self._interrupt()
        if error is not None:
            if self._losses is not None:
                self._losses.add(self._names(RoleName.rollout), error)
            self._end(RoleName.rollout, error.what)

    def _interrupt(self) -> RehearsalError | None:
        """Have engines drop what they sample; returns the error that prevented it, if any."""
        rollout = self._groups.get(RoleName.rollout)
        try:
            if rollout is not None and rollout.sampling:
                rollout.abandon()
        except RehearsalError as error:
            return error
        return None

    def _names(self, name: RoleName) -> list[str]:
        group = self._groups.get(name)
        return [group.name(rank) for rank in group.ranks] if group is not None else []

    def _end(self, name: RoleName, why: str) -> None:
        """End a group that will be restarted."""
        group = self._groups[name]
        workers = [group.name(rank) for rank in range(group.size)]
        for worker in filter(self.watch.comes_back, workers):
            self.watch.require_restart(worker, why)
        self._groups.pop(name).kill()

    def _half_loaded(self) -> list[str]:
        """Engines that hold weights of two versions; all engines if one does not answer."""
        rollout = self.rollout
        try:
            states = rollout.states().result()
        except RehearsalError:
            return self._names(RoleName.rollout)
        return [
            rollout.name(rank)
            for rank, state in zip(rollout.ranks, states, strict=True)
            if state.version >= 0 and state.status == "empty"
        ]

    def look_after(self) -> None:
        """Probe all workers; the driver calls this during its own long work."""
        self.watch.tick()

    def holds(self, name: RoleName) -> bool:
        """Whether the group exists and so still holds what was last loaded into it."""
        return name in self._groups

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

    @property
    def environment(self) -> EnvironmentGroup:
        """What answers the policy between its turns."""
        return self._group(RoleName.environment)

    def census(self) -> tuple[dict[str, int], int]:
        """Workers in use by role, and sequences that engines have not finished.

        Starts nothing and waits for nothing; any thread may call it.
        """
        groups = self._groups.copy()
        engines: RolloutGroup | None = groups.get(RoleName.rollout)
        workers = {name.value: len(group.ranks) for name, group in groups.items()}
        return workers, engines.unfinished if engines else 0

    def infos(self) -> list[RoleInfo]:
        """Role, rank, process and node of every worker that was started."""
        return [
            info for name in RoleName if name in self._groups for info in self._groups[name].infos
        ]

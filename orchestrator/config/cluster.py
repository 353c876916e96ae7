"""Settings of the cluster: nodes, devices, and the share of each role."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from orchestrator.config.ranges import at_least, needed, positive
from workers.errors import ConfigError

_SIZE = r"\d{1,6}(\.\d{1,4})?x\d{1,4}"
_SIZES = re.compile(rf"{_SIZE}(\+{_SIZE})*")


class RoleName(Enum):
    """The role groups; each is one or more actor processes."""

    rollout = "rollout"
    reward = "reward"
    reference = "reference"
    policy = "policy"
    critic = "critic"
    environment = "environment"


class Accelerator(Enum):
    """What the roles compute on."""

    cpu = "cpu"
    cuda = "cuda"


class Auth(Enum):
    """Whether Ray's servers ask for a token from each process that connects."""

    auto = "auto"
    """A local cluster has a token of its own; a joined one gets a token if it asks for one."""
    token = "token"
    """Like auto, but a cluster without authentication is not joined."""
    disabled = "disabled"
    """No token: other users of this machine can run code on a local cluster."""


class Placement(Enum):
    """How the workers of a role group are spread over the nodes."""

    packed = "packed"
    """On as few nodes as possible."""
    apart = "apart"
    """Each role group on separate nodes if there are enough."""


@dataclass(slots=True, kw_only=True)
class RoleResources:
    """Number of workers of a role, and the resources that each one reserves from Ray."""

    workers: int = positive(1, 10_000)
    """Processes of the role: engines, replicas, or ranks of one ZeRO group."""
    cpus: float = at_least(0, 0.25)
    """CPU cores per worker."""
    gpus: float = at_least(0, 0.0)
    """GPUs per worker."""
    threads: int = at_least(0, 0, 1024)
    """Processor threads per worker; 0: chosen from cluster.cores, the model's width and the roles
    that compute at the same time."""

    def check(self, key: str) -> None:
        """Check that `gpus` is a whole number when it is above 1."""
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ConfigError(
                f"gpus={self.gpus:g}", where=f"{key}.gpus", fix="use whole GPUs above 1"
            )


@dataclass(slots=True, kw_only=True)
class EngineResources(RoleResources):
    """Number of engines, and the resources that each one reserves from Ray."""

    max_workers: int = at_least(0, 0, 10_000)
    """Engines at most: those above `workers` join whenever a joined cluster has room for them, and
    leave with their nodes; 0: as many as `workers`."""

    @property
    def most(self) -> int:
        """Engines at most."""
        return self.max_workers or self.workers

    def check(self, key: str) -> None:
        """Check that `max_workers` is not below `workers`."""
        RoleResources.check(self, key)
        if self.most < self.workers:
            raise ConfigError(
                f"max_workers={self.max_workers} is below workers={self.workers}",
                where=f"{key}.max_workers",
                fix=f"use at least {self.workers}, or 0 for a fixed number of engines",
            )


@dataclass(slots=True, kw_only=True)
class RolesConfig:
    """Resources of each role group."""

    rollout: EngineResources = field(default_factory=EngineResources)
    """Engines that generate; each serves the whole policy."""
    reward: RoleResources = field(default_factory=RoleResources)
    """Replicas that score responses."""
    reference: RoleResources = field(default_factory=RoleResources)
    """Replicas of the frozen reference model."""
    policy: RoleResources = field(default_factory=RoleResources)
    """Ranks that train the policy."""
    critic: RoleResources = field(default_factory=RoleResources)
    """Ranks that train the reward model, then the critic."""
    environment: RoleResources = field(default_factory=RoleResources)
    """Processes that answer the policy between its turns (environment.kind)."""

    def of(self, role: RoleName) -> RoleResources:
        """The resources of one role group."""
        return getattr(self, role.value)


@dataclass(slots=True, kw_only=True)
class ClusterConfig:
    """The Ray cluster, the resources of its nodes, and the placement of the roles."""

    address: str = needed("local")
    """local starts a cluster on this machine; auto or HOST:PORT joins a running one."""
    auth: Auth = Auth.auto
    """Whether a local cluster has a token; and whether a joined one must have one."""
    accelerator: Accelerator = Accelerator.cpu
    """What models compute on."""
    nodes: int | None = positive(1, 10_000)
    """Nodes that the plan places the roles on; null = all of a joined cluster."""
    cpus_per_node: float | None = positive(2.0)
    """CPU cores per node that the plan may hand out; null = those that the joined node has."""
    cores: int = at_least(0, 0, 4096)
    """Cores of a node that roles on CPUs divide among them; 0: those that this process may use, on
    a joined cluster those that the plan may hand out."""
    gpus_per_node: int | None = at_least(0, 0, 1024)
    """GPUs per node that the plan may hand out; null = those that the joined node has."""
    sizes: str = ""
    """CPUs and GPUs of each node, such as "64x8+64x8+8x0"; "" = all alike, by the numbers above. A
    run that joins a cluster with one of these numbers at null fills it in."""
    gpu_memory_gib: float = positive(80.0)
    """Memory of one GPU; the plan rejects models that do not fit."""
    object_store_mib: int = positive(512)
    """Ray's shared object store; only with address=local."""
    placement: Placement = Placement.packed
    """How role groups share nodes."""
    roles: RolesConfig = field(default_factory=RolesConfig)
    """Workers and resources of each role."""

    @property
    def unknown(self) -> list[str]:
        """The keys whose values only the cluster that is joined can tell."""
        keys = ("nodes", "cpus_per_node", "gpus_per_node")
        return [] if self.sizes else [key for key in keys if getattr(self, key) is None]

    def check(self, key: str) -> None:
        """Check that sizes can be read, and that a local cluster leaves nothing open."""
        if self.sizes and not _SIZES.fullmatch(self.sizes):
            raise ConfigError(
                f"sizes={self.sizes!r} cannot be read",
                where=f"{key}.sizes",
                fix="write CPUs and GPUs of each node: 64x8+64x8+8x0",
            )
        asked = self.unknown or ["sizes"] * bool(self.sizes)
        if asked and self.address == "local":
            raise ConfigError(
                f"{asked[0]}={getattr(self, asked[0]) or 'null'} is for a cluster that is joined; "
                "a local one has one node, with the numbers of the configuration",
                where=f"{key}.{asked[0]}",
                fix="give numbers, or join a cluster by cluster.address=auto or HOST:PORT",
            )

"""Settings of the cluster: nodes, devices, and the share of each role."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.config.ranges import at_least, needed, positive
from workers.errors import ConfigError


class RoleName(Enum):
    """The role groups; each is one or more actor processes."""

    rollout = "rollout"
    reward = "reward"
    reference = "reference"
    policy = "policy"
    critic = "critic"


class Accelerator(Enum):
    """What the roles compute on."""

    cpu = "cpu"
    cuda = "cuda"


class Placement(Enum):
    """How the workers of a role group are spread over the nodes."""

    packed = "packed"  # on as few nodes as possible
    apart = "apart"  # each role group on separate nodes if there are enough


@dataclass(slots=True, kw_only=True)
class RoleResources:
    """Number of workers of a role, and the resources that each one reserves from Ray."""

    workers: int = positive(1, 10_000)
    cpus: float = at_least(0, 0.25)  # per worker
    gpus: float = at_least(0, 0.0)  # per worker
    threads: int = positive(1, 1024)  # OpenMP threads per worker

    def check(self, key: str) -> None:
        """Check that `gpus` is a whole number when it is above 1."""
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ConfigError(
                f"gpus={self.gpus:g}", where=f"{key}.gpus", fix="use whole GPUs above 1"
            )


@dataclass(slots=True, kw_only=True)
class RolesConfig:
    """Resources of each role group."""

    rollout: RoleResources = field(default_factory=RoleResources)
    reward: RoleResources = field(default_factory=RoleResources)
    reference: RoleResources = field(default_factory=RoleResources)
    policy: RoleResources = field(default_factory=RoleResources)
    critic: RoleResources = field(default_factory=RoleResources)

    def of(self, role: RoleName) -> RoleResources:
        """The resources of one role group."""
        return getattr(self, role.value)


@dataclass(slots=True, kw_only=True)
class ClusterConfig:
    """The Ray cluster, the resources of its nodes, and the placement of the roles."""

    # "local" starts a cluster on this machine; "auto" or HOST:PORT joins a running one
    address: str = needed("local")
    accelerator: Accelerator = Accelerator.cpu
    nodes: int = positive(1, 10_000)
    cpus_per_node: float = positive(2.0)
    gpus_per_node: int = at_least(0, 0, 1024)
    gpu_memory_gib: float = positive(80.0)  # per GPU; the plan rejects models that do not fit
    object_store_mib: int = positive(512)  # only with address=local
    placement: Placement = Placement.packed
    roles: RolesConfig = field(default_factory=RolesConfig)

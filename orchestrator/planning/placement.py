"""Placement of the ranks of all roles on nodes, computed before anything starts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.config.cluster import ClusterConfig, Placement, RoleName, RoleResources
from workers.errors import ResourceError

_EPSILON = 1e-6  # Ray counts resources in units of 1e-4; sums of shares such as 0.1 are not exact


@dataclass(frozen=True, slots=True)
class Place:
    """One worker of a role group."""

    role: RoleName
    rank: int


@dataclass(frozen=True, slots=True)
class NodeShare:
    """The run's share of one node: CPU cores, GPUs, and the workers that use them."""

    cpus: float
    gpus: float
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The nodes of a run in order; each is one bundle of the run's placement group."""

    nodes: tuple[NodeShare, ...]

    def node_of(self, role: RoleName, rank: int) -> int:
        """The index of the node of a worker; KeyError if the worker was not placed."""
        for index, node in enumerate(self.nodes):
            if Place(role, rank) in node.places:
                return index
        raise KeyError(f"{role.value}/{rank} has no place in this run")

    @property
    def roles(self) -> tuple[RoleName, ...]:
        """The placed role groups, in the order of `RoleName`."""
        placed = {place.role for node in self.nodes for place in node.places}
        return tuple(role for role in RoleName if role in placed)

    @property
    def cpus(self) -> float:
        """CPU cores over all nodes."""
        return math.fsum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs over all nodes."""
        return math.fsum(node.gpus for node in self.nodes)


class _Node:
    """A node while it is being filled."""

    def __init__(self, cpus: float, gpus: float) -> None:
        self.cpus, self.gpus = cpus, gpus
        self.cpus_used = self.gpus_used = 0.0
        self.places: list[Place] = []

    def fits(self, need: RoleResources) -> bool:
        return (
            self.cpus_used + need.cpus <= self.cpus + _EPSILON
            and self.gpus_used + need.gpus <= self.gpus + _EPSILON
        )

    def add(self, place: Place, need: RoleResources) -> None:
        self.cpus_used += need.cpus
        self.gpus_used += need.gpus
        self.places.append(place)

    def strangers(self, role: RoleName) -> int:
        """Number of other role groups on this node."""
        return len({place.role for place in self.places} - {role})

    def share(self) -> NodeShare:
        return NodeShare(round(self.cpus_used, 4), round(self.gpus_used, 4), tuple(self.places))


def place_roles(cluster: ClusterConfig, roles: Iterable[RoleName]) -> Layout:
    """Assign a node to every worker of `roles`.

    Packed placement fills one node after the other. Placement `apart` prefers, for each worker, the
    node with the fewest other role groups, so groups get separate nodes if there are enough. Groups
    with the largest needs are placed first, because large gaps are rare once small groups have been
    spread. On a local cluster, CPU figures are shares, not cores, so they never refuse a run; GPUs
    always count.

    Raises:
        ResourceError: a worker fits on no node; shows the needs and the cluster's resources.
    """
    needs = {role: cluster.roles.of(role) for role in RoleName if role in set(roles)}
    local = cluster.address == "local"
    cpus = math.inf if local else cluster.cpus_per_node
    nodes = [_Node(cpus, cluster.gpus_per_node) for _ in range(cluster.nodes)]
    for role in sorted(needs, key=lambda role: _demand(needs[role]), reverse=True):
        for rank in range(needs[role].workers):
            node = _choose(nodes, role, needs[role], cluster.placement)
            if node is None:
                raise _too_small(cluster, needs, role, rank)
            node.add(Place(role, rank), needs[role])
    return Layout(tuple(node.share() for node in nodes if node.places))


def _demand(need: RoleResources) -> tuple[float, float]:
    return need.gpus * need.workers, need.cpus * need.workers


def _choose(
    nodes: list[_Node], role: RoleName, need: RoleResources, placement: Placement
) -> _Node | None:
    candidates = [node for node in nodes if node.fits(need)]
    if not candidates:
        return None
    if placement is Placement.packed:
        return candidates[0]
    return min(candidates, key=lambda node: (node.strangers(role), not node.places))


def _too_small(
    cluster: ClusterConfig, needs: Mapping[RoleName, RoleResources], role: RoleName, rank: int
) -> ResourceError:
    cpus = math.fsum(need.cpus * need.workers for need in needs.values())
    gpus = math.fsum(need.gpus * need.workers for need in needs.values())
    each = ", ".join(
        f"{name.value} {need.workers} x ({need.cpus:g} CPUs, {need.gpus:g} GPUs)"
        for name, need in needs.items()
    )
    return ResourceError(
        f"the roles do not fit: {each} make {cpus:g} CPUs and {gpus:g} GPUs; the cluster has "
        f"{cluster.nodes} x ({cluster.cpus_per_node:g} CPUs, {cluster.gpus_per_node} GPUs)",
        where=f"{role.value}/{rank} is the first worker without a place",
        fix="lower cluster.roles.<role>.workers, .cpus or .gpus, or raise cluster.nodes, "
        "cluster.cpus_per_node or cluster.gpus_per_node to what the cluster really has",
    )

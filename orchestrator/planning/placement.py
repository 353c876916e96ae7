"""Placement of the ranks of all roles on nodes, computed before anything starts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.config.cluster import ClusterConfig, Placement, RoleName, RoleResources
from workers.errors import ConfigError, ResourceError

#: How a plan is made without a cluster.
TYPED = "cluster.nodes=N cluster.cpus_per_node=N cluster.gpus_per_node=N"

_EPSILON = 1e-6  # Ray counts resources in units of 1e-4; sums of shares such as 0.1 are not exact
_RANKED = (RoleName.policy, RoleName.critic)  # one process group each: NCCL takes a rank per GPU


@dataclass(frozen=True, slots=True)
class Place:
    """One worker of a role group."""

    role: RoleName
    rank: int


@dataclass(frozen=True, slots=True)
class Share:
    """CPU cores and GPUs that are reserved together, and the workers that use them."""

    cpus: float
    gpus: float
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class NodeShare(Share):
    """The run's share of one node."""

    shared: tuple[Share, ...] = ()  # those of its GPUs that several workers may share

    @property
    def bundles(self) -> tuple[Share, ...]:
        """What to reserve of the node: one bundle, or one per shared GPU and one for the rest.

        Ray packs fractions of a GPU within a bundle onto as few GPUs as possible, so only a bundle
        of one GPU decides which workers share it.
        """
        if len(self.shared) < 2:
            return (Share(self.cpus, self.gpus, self.places),)
        gone = {place for share in self.shared for place in share.places}
        places = tuple(place for place in self.places if place not in gone)
        rest = Share(
            round(self.cpus - math.fsum(share.cpus for share in self.shared), 4),
            round(self.gpus - math.fsum(share.gpus for share in self.shared), 4),
            places,
        )
        return (*self.shared, rest) if places else self.shared

    @property
    def taken(self) -> float:
        """GPUs that the bundles take: whole ones if there are several bundles."""
        bundles = self.bundles
        return self.gpus if len(bundles) == 1 else sum(math.ceil(b.gpus) for b in bundles)


@dataclass(frozen=True, slots=True)
class NodeSize:
    """What a node of a cluster has."""

    cpus: float
    gpus: int

    def __str__(self) -> str:
        return f"({self.cpus:g} CPUs, {self.gpus} GPUs)"


@dataclass(frozen=True, slots=True)
class Layout:
    """The nodes of a run in order, each with its bundles of the run's placement group."""

    nodes: tuple[NodeShare, ...]

    def node_of(self, role: RoleName, rank: int) -> int:
        """The index of the node of a worker; KeyError if the worker was not placed."""
        return self.bundles[self.bundle_of(role, rank)][0]

    def bundle_of(self, role: RoleName, rank: int) -> int:
        """The index in `bundles` of a worker; KeyError if the worker was not placed."""
        for index, (_, share) in enumerate(self.bundles):
            if Place(role, rank) in share.places:
                return index
        raise KeyError(f"{role.value}/{rank} has no place in this run")

    @property
    def bundles(self) -> tuple[tuple[int, Share], ...]:
        """(index of the node, share) of every bundle, in order."""
        return tuple((i, share) for i, node in enumerate(self.nodes) for share in node.bundles)

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


class _Gpu:
    """A GPU while it is being filled with workers that take fractions of it."""

    def __init__(self) -> None:
        self.cpus = self.gpus = 0.0
        self.places: list[Place] = []

    def count(self, role: RoleName) -> int:
        """Number of workers of a role on this GPU."""
        return sum(place.role is role for place in self.places)


class _Node:
    """A node while it is being filled."""

    def __init__(self, cpus: float, gpus: int) -> None:
        self.cpus, self.gpus = cpus, [_Gpu() for _ in range(gpus)]
        self.cpus_used, self.whole = 0.0, 0  # `whole` GPUs at the end of the list are not shared
        self.places: list[Place] = []

    def fits(self, role: RoleName, need: RoleResources) -> bool:
        if self.cpus_used + need.cpus > self.cpus + _EPSILON:
            return False
        if 0 < need.gpus < 1:
            return self.gpu(role, need) is not None
        free = sum(not gpu.places for gpu in self.gpus) - self.whole
        return need.gpus <= free

    def gpu(self, role: RoleName, need: RoleResources) -> _Gpu | None:
        """The GPU for a worker that takes a fraction: the first with the fewest of its role.

        So rank i of every role is on GPU i as long as there are enough, and no GPU ever has two
        ranks of one process group.
        """
        fitting = [
            gpu
            for gpu in self.gpus[: len(self.gpus) - self.whole]
            if gpu.gpus + need.gpus <= 1 + _EPSILON and not (role in _RANKED and gpu.count(role))
        ]
        return min(fitting, key=lambda gpu: gpu.count(role), default=None)

    def crowd(self, role: RoleName, need: RoleResources) -> int:
        """Number of the role's workers on the GPU that its next worker would share."""
        gpu = self.gpu(role, need) if 0 < need.gpus < 1 else None
        return gpu.count(role) if gpu else 0

    def add(self, place: Place, need: RoleResources) -> None:
        if 0 < need.gpus < 1:
            gpu = self.gpu(place.role, need)
            assert gpu is not None, "`fits` comes first"
            gpu.cpus += need.cpus
            gpu.gpus += need.gpus
            gpu.places.append(place)
        else:
            self.whole += int(need.gpus)
        self.cpus_used += need.cpus
        self.places.append(place)

    def strangers(self, role: RoleName) -> int:
        """Number of other role groups on this node."""
        return len({place.role for place in self.places} - {role})

    def share(self) -> NodeShare:
        gpus = self.whole + math.fsum(gpu.gpus for gpu in self.gpus)
        shared = tuple(
            Share(round(gpu.cpus, 4), round(gpu.gpus, 4), tuple(gpu.places))
            for gpu in self.gpus
            if gpu.places
        )
        return NodeShare(round(self.cpus_used, 4), round(gpus, 4), tuple(self.places), shared)


def known_nodes(cluster: ClusterConfig) -> list[NodeSize]:
    """The nodes as the configuration has them: each by itself, or all alike.

    Raises:
        ConfigError: numbers are left to a cluster that was not asked.
    """
    if cluster.sizes:
        pairs = (each.split("x") for each in cluster.sizes.split("+"))
        return [NodeSize(float(cpus), int(gpus)) for cpus, gpus in pairs]
    nodes, cpus, gpus = cluster.nodes, cluster.cpus_per_node, cluster.gpus_per_node
    if nodes is None or cpus is None or gpus is None:
        raise ConfigError(
            f"{cluster.unknown[0]}=null is read from the cluster that is joined; none was asked",
            where=f"cluster.{cluster.unknown[0]}",
            fix=f"give numbers: {TYPED}",
        )
    return [NodeSize(cpus, gpus)] * nodes


def usable_nodes(cluster: ClusterConfig) -> list[NodeSize]:
    """What the plan may take of each node, the largest first: numbers are limits of `sizes`.

    Raises:
        ConfigError: as `known_nodes`.
    """
    nodes = [node for node in known_nodes(cluster) if node.cpus > 0 or node.gpus > 0]
    nodes.sort(key=lambda node: (node.gpus, node.cpus), reverse=True)
    most_cpus = math.inf if cluster.cpus_per_node is None else cluster.cpus_per_node
    most_gpus = math.inf if cluster.gpus_per_node is None else cluster.gpus_per_node
    return [
        NodeSize(min(node.cpus, most_cpus), int(min(node.gpus, most_gpus)))
        for node in nodes[: cluster.nodes]
    ]


def place_roles(cluster: ClusterConfig, roles: Iterable[RoleName]) -> Layout:
    """Assign a node to every worker of `roles`, and a GPU to those that take a fraction of one.

    Packed placement fills one node after the other. Placement `apart` prefers, for each worker, the
    node with the fewest other role groups, so groups get separate nodes if there are enough. Groups
    with the largest needs are placed first, because large gaps are rare once small groups have been
    spread; those with whole GPUs before those that share them. On a local cluster, CPU figures are
    shares, not cores, so they never refuse a run; GPUs always count.

    Raises:
        ConfigError: as `known_nodes`.
        ResourceError: a worker fits on no node; shows the needs and the cluster's resources.
    """
    needs = {role: cluster.roles.of(role) for role in RoleName if role in set(roles)}
    local = cluster.address == "local"
    sizes = usable_nodes(cluster)
    nodes = [_Node(math.inf if local else size.cpus, size.gpus) for size in sizes]
    for role in sorted(needs, key=lambda role: _demand(needs[role]), reverse=True):
        for rank in range(needs[role].workers):
            node = _choose(nodes, role, needs[role], cluster.placement)
            if node is None:
                raise _too_small(sizes, needs, role, rank)
            node.add(Place(role, rank), needs[role])
    return Layout(tuple(node.share() for node in nodes if node.places))


def _demand(need: RoleResources) -> tuple[bool, float, float]:
    return need.gpus >= 1, need.gpus * need.workers, need.cpus * need.workers


def _choose(
    nodes: list[_Node], role: RoleName, need: RoleResources, placement: Placement
) -> _Node | None:
    candidates = [node for node in nodes if node.fits(role, need)]
    if not candidates:
        return None
    if placement is Placement.packed:
        return min(candidates, key=lambda node: node.crowd(role, need))
    return min(candidates, key=lambda n: (n.strangers(role), n.crowd(role, need), not n.places))


def _too_small(
    sizes: Sequence[NodeSize], needs: Mapping[RoleName, RoleResources], role: RoleName, rank: int
) -> ResourceError:
    workers, total = needs[role].workers, sum(size.gpus for size in sizes)
    if role in _RANKED and 0 < needs[role].gpus < 1 and workers > total:
        return ResourceError(
            f"{workers} ranks of the {role.value} on {total} GPU(s): ranks of one process group "
            "cannot share a GPU",
            where=f"cluster.roles.{role.value}.workers",
            fix=f"set it to at most {total}, one rank per GPU, or raise cluster.nodes or "
            "cluster.gpus_per_node to what the cluster really has (null reads it)",
        )
    cpus = math.fsum(need.cpus * need.workers for need in needs.values())
    gpus = math.fsum(need.gpus * need.workers for need in needs.values())
    each = ", ".join(
        f"{name.value} {need.workers} x ({need.cpus:g} CPUs, {need.gpus:g} GPUs)"
        for name, need in needs.items()
    )
    return ResourceError(
        f"the roles do not fit: {each} make {cpus:g} CPUs and {gpus:g} GPUs; the cluster has "
        f"{counted(sizes)}",
        where=f"{role.value}/{rank} is the first worker without a place",
        fix="lower cluster.roles.<role>.workers, .cpus or .gpus, or raise cluster.nodes, "
        "cluster.cpus_per_node or cluster.gpus_per_node to what the cluster really has (null reads "
        "it)",
    )


def counted(sizes: Iterable[NodeSize]) -> str:
    """Sizes in words, equal ones together: `2 x (64 CPUs, 8 GPUs)`."""
    return ", ".join(f"{n} x {size}" for size, n in Counter(sizes).items()) or "no node"

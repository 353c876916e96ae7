"""Reservation of a run's layout on a cluster, whose nodes may still be coming up.

Batch systems start nodes side by side, and an autoscaler starts them for a pending reservation. So
a joined cluster with too few nodes is not refused: the reservation is made and waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import ray
from ray.util.placement_group import (
    NODE_ID_LABEL_KEY,
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from orchestrator.cluster.joining import GLANCE_SECONDS
from orchestrator.config.cluster import Accelerator, ClusterConfig
from orchestrator.planning.placement import Layout
from orchestrator.supervision.server_guard import Guard
from workers.errors import DeadlineError, ResourceError


def reserve(
    config: ClusterConfig,
    layout: Layout,
    seconds: float,
    guard: Guard,
    note: Callable[[str], None] = lambda _: None,
) -> PlacementGroup:
    """Reserve the layout, on nodes of which some may come up meanwhile.

    Raises:
        ResourceError: the nodes are too small, or too few of them came up within `seconds`.
        DeadlineError: there are enough nodes, and what they have did not become free in time.
    """
    until, wanted = time.monotonic() + seconds, len(layout.nodes)
    few = config.address != "local" and _useful() < wanted
    if not few:
        require_nodes(config, layout)
        for words in _overstated(config):
            note(words)
        return _reserve(layout, until, guard)
    note(f"{_useful()} of {wanted} node(s) have joined: waiting up to {seconds:.0f} s for the rest")
    try:
        return _reserve(layout, until, guard)
    except DeadlineError:
        require_nodes(config, layout)
        raise


def _alive() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _useful() -> int:
    """Nodes that have anything for workers: a head is often kept free of them."""
    return len(_nodes_for_workers())


def _nodes_for_workers() -> list[dict[str, float]]:
    return [n for n in _alive() if n.get("CPU", 0.0) > 0 or n.get("GPU", 0.0) > 0]


def _overstated(config: ClusterConfig) -> list[str]:
    """Which numbers of the configuration are above what a node has, although the plan fits."""
    nodes, found = _nodes_for_workers(), list[str]()
    if config.address == "local" or config.sizes or not nodes:
        return []
    for key, resource in (("cpus_per_node", "CPU"), ("gpus_per_node", "GPU")):
        typed = getattr(config, key)
        least = min(node.get(resource, 0.0) for node in nodes)
        if typed is not None and typed > least:
            found.append(
                f"cluster.{key}={typed:g} is more than a node has ({least:g}), and the plan fits "
                "all the same; null reads it from the cluster"
            )
    return found


def require_nodes(config: ClusterConfig, layout: Layout) -> None:
    """Check that every bundle fits on a separate node, the largest on the largest.

    Raises:
        ResourceError: there are too few nodes, or they are too small.
    """
    have = sorted(((n.get("GPU", 0.0), n.get("CPU", 0.0)) for n in _alive()), reverse=True)
    want = sorted(((share.taken, share.cpus) for share in layout.nodes), reverse=True)
    fits = len(have) >= len(want) and all(
        gpus <= node_gpus and cpus <= node_cpus
        for (gpus, cpus), (node_gpus, node_cpus) in zip(want, have, strict=False)
    )
    if fits:
        return
    raise ResourceError(
        f"the plan takes {_figures(want)}; the cluster at {config.address!r} has {_figures(have)}",
        where="cluster",
        fix=_fix(config),
    )


def _fix(config: ClusterConfig) -> str:
    if config.accelerator is Accelerator.cuda and config.address == "local":
        return "this machine lacks the GPUs: use cluster=local_cpu, or join a cluster that has them"
    return (
        "describe the cluster as it is by cluster.nodes, cluster.cpus_per_node and "
        "cluster.gpus_per_node, or set the last two to null to read them"
    )


def _figures(nodes: Iterable[tuple[float, float]]) -> str:
    return ", ".join(f"({cpus:g} CPUs, {gpus:g} GPUs)" for gpus, cpus in nodes) or "no node"


def _reserve(layout: Layout, until: float, guard: Guard) -> PlacementGroup:
    """Reserve the layout's bundles, the share of each node on a node of its own.

    Ray can spread bundles over nodes or pack them on one, but not both in one group. So bundles of
    several nodes are first reserved as one per node, which chooses the nodes, and then separately
    on the same nodes.
    """
    whole = [resources_of(node.cpus, node.taken) for node in layout.nodes]
    bundles = [resources_of(share.cpus, share.gpus) for _, share in layout.bundles]
    if len(bundles) == len(whole):
        return _granted(whole, "STRICT_SPREAD", None, until, guard)
    if len(whole) == 1:
        return _granted(bundles, "STRICT_PACK", None, until, guard)
    chosen = _granted(whole, "STRICT_SPREAD", None, until, guard)
    ids: dict[int, str] = placement_group_table(chosen)["bundles_to_node_id"]
    remove_placement_group(chosen)
    nodes = [{NODE_ID_LABEL_KEY: ids[index]} for index, _ in layout.bundles]
    return _granted(bundles, "PACK", nodes, until, guard)


def _granted(
    bundles: list[dict[str, float]],
    strategy: str,
    nodes: list[dict[str, str]] | None,
    until: float,
    guard: Guard,
) -> PlacementGroup:
    """Wait for a group until a point in time; `nodes` are label selectors, one per bundle."""
    group = placement_group(
        bundles,
        strategy=strategy,
        name=f"rehearsal-{time.time_ns()}",
        bundle_label_selector=nodes,  # pyright: ignore[reportArgumentType]  Ray's default is None
    )
    began = time.monotonic()
    while not group.wait(timeout_seconds=min(GLANCE_SECONDS, max(0.0, until - time.monotonic()))):
        guard.check()
        if time.monotonic() < until:
            continue
        remove_placement_group(group)
        cpus, gpus = (sum(b.get(name, 0.0) for b in bundles) for name in ("CPU", "GPU"))
        raise DeadlineError(
            f"the cluster did not free {cpus:g} CPUs and {gpus:g} GPUs in {len(bundles)} "
            f"bundle(s) within {time.monotonic() - began:.0f} s",
            where="placement group",
            fix="wait for other jobs (`ray status` lists them) or raise run.role_start_seconds",
        )
    return group


def resources_of(cpus: float, gpus: float) -> dict[str, float]:
    """Resources of a bundle; Ray rejects empty bundles and zero amounts."""
    wanted = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0}
    return wanted or {"CPU": 0.001}

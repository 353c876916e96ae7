"""What Ray reports of the nodes of a cluster that a run would join, before the plan is made."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from orchestrator.cluster.authentication import alive_nodes, find_access
from orchestrator.cluster.joining import GLANCE_SECONDS, find_address, no_answer
from orchestrator.config.cluster import ClusterConfig
from orchestrator.planning.placement import TYPED
from workers.errors import ResourceError


def reported_nodes(config: ClusterConfig, seconds: float, note: Callable[[str], None]) -> str:
    """CPUs and GPUs of each node that has any, as `cluster.sizes`, the largest first.

    Waits for `cluster.nodes` of them (null: for one). This process does not join the cluster.

    Args:
        config: Its address, and the number of nodes to wait for.
        seconds: How long to wait for nodes that are coming up.
        note: Is told once that some are missing.

    Raises:
        ResourceError: no cluster answers at the address, or too few nodes joined in time.
        ClusterTokenError: the token that is here is unusable, or the cluster refuses it.
    """
    until, wanted, told = time.monotonic() + seconds, config.nodes or 1, False
    while len(found := _look(config)) < wanted:
        if time.monotonic() >= until:
            raise ResourceError(
                f"{len(found)} of {wanted} node(s) with CPUs have joined the cluster at "
                f"{config.address!r}",
                where="cluster.nodes",
                fix="start Ray on the others, lower cluster.nodes, raise run.role_start_seconds, "
                f"or give numbers, which nodes that an autoscaler starts need: {TYPED}",
            )
        if not told:
            note(f"{len(found)} of {wanted} node(s) have joined: waiting up to {seconds:.0f} s")
        told = True
        time.sleep(GLANCE_SECONDS)
    return "+".join(f"{cpus:g}x{gpus}" for gpus, cpus in sorted(found, reverse=True))


def _look(config: ClusterConfig) -> list[tuple[int, float]]:
    """GPUs and CPUs of each node that has any: a head is often kept free of them."""
    try:
        address = find_address(config.address)
        token = find_access(config.auth, address, os.environ)
        nodes = alive_nodes(address, token)
    except ConnectionError as error:
        refused = no_answer(config, error)
        refused.fix += f"; a plan without a cluster needs numbers: {TYPED}"
        raise refused from error
    sizes = [(int(node.get("GPU", 0.0)), node.get("CPU", 0.0)) for node in nodes]
    return [size for size in sizes if any(size)]

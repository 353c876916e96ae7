"""Ray cluster of a run: start or join it, reserve the plan's layout, and release everything.

One placement group holds the whole run: the plan's share of each node is one bundle, or several
where workers share GPUs, and each share gets a different node. The group is reserved as a whole or
not at all, so two runs on one cluster cannot each hold half of what they need, and the actual
placement is the one that the plan printed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.cluster.authentication import Authentication
from orchestrator.cluster.extra_room import ExtraRoom
from orchestrator.cluster.fork_servers import ForkServers
from orchestrator.cluster.joining import join
from orchestrator.cluster.private_ray import PrivateRay, leave, start_private_ray
from orchestrator.cluster.reservation import reserve, resources_of
from orchestrator.cluster.start_worker import SERVER
from orchestrator.config.cluster import ClusterConfig, RoleName
from orchestrator.planning.placement import Layout
from orchestrator.planning.worker_specs import role_environment
from orchestrator.process.forced_exit import LastResort, within
from orchestrator.supervision.ray_servers import distant_servers
from orchestrator.supervision.server_guard import Guard
from orchestrator.supervision.worker_life import Rules

# Read by Ray's own processes when they start. Prestarted workers would start Python once per core
# for tasks that never come, since every process of a run is an actor.
_RAY_SWITCHES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    # The unused history of calls grows gcs_server by 45 KB per PPO iteration.
    "RAY_task_events_report_interval_ms": "0",
}
_RELEASE_SECONDS = 10.0
_RULES = Rules(probe_seconds=10.0, probes_to_condemn=3, max_restarts=0, window_seconds=1.0)


class Cluster:
    """A running cluster with the run's resources reserved on it; a context manager."""

    def __init__(
        self,
        config: ClusterConfig,
        layout: Layout,
        group: PlacementGroup,
        local: PrivateRay | None,
        guard: Guard,
        authentication: Authentication,
        error_logs: Path | None = None,
        forks: ForkServers | None = None,
    ) -> None:
        self.guard = guard
        self._forks = forks
        self._authentication = authentication
        self._config = config
        self._layout = layout
        self._group = group
        self._local = local
        self._error_logs = error_logs
        self._closed = False
        engine = config.roles.rollout
        self.room = ExtraRoom(resources_of(engine.cpus, engine.gpus))

    def bundle(
        self, role: RoleName | str, rank: int, env: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Keyword arguments for `actor.options` that place one worker according to the plan.

        Args:
            role: The role group, or its name.
            rank: The worker's rank in its group.
            env: Environment variables of the worker's process on top of `role_environment`.

        Raises:
            KeyError: the plan places no such worker, and an extra engine has no place.
        """
        name = RoleName(role)
        need = self._config.roles.of(name)
        if name is RoleName.rollout and rank >= need.workers:
            group, index = self.room.place(rank), 0
        else:
            group, index = self._group, self._layout.bundle_of(name, rank)
        return {
            "num_cpus": need.cpus,
            "num_gpus": need.gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=index
            ),
            "runtime_env": {
                "env_vars": role_environment(self._config, name)
                | self._places(name)
                | dict(env or {})
            },
        }

    def _places(self, role: RoleName) -> dict[str, str]:
        """Where the processes of a local cluster begin, and have their temporary files."""
        if self._local is None:
            return {}
        # Temporary files, such as vLLM's sockets, are then deleted with the cluster.
        address = self._forks.address(role) if self._forks is not None else ""
        return {"TMPDIR": str(self._local.temporary)} | ({SERVER: address} if address else {})

    @property
    def log_folder(self) -> Path | None:
        """Folder of the processes' logs of a local cluster; None for a joined cluster."""
        return self._local.log_folder if self._local else None

    def close(self, keep_logs: Path | None = None) -> None:
        """Release everything; safe to call twice.

        Actors end with the reservation. A local cluster is shut down completely: afterwards none of
        its processes is alive, and its scratch folder is deleted.

        Args:
            keep_logs: A folder that gets the logs of the roles' processes before they are deleted.
        """
        if self._closed:
            return
        self._closed = True
        if self._local is None:
            if not self.guard.lost:
                self.room.close()
            _leave_joined(self._group, self.guard)
        else:
            self._local.close(keep_logs)
        self._authentication.restore()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(self._error_logs if error is not None else None)


def start_cluster(
    config: ClusterConfig,
    layout: Layout,
    seconds: float,
    error_logs: Path | None = None,
    rules: Rules | None = None,
    resort: LastResort | None = None,
    note: Callable[[str], None] = lambda _: None,
    forks: ForkServers | None = None,
) -> Cluster:
    """Start a local cluster or join a running one, and reserve the layout on it.

    Args:
        config: Address of the cluster and properties of its nodes.
        layout: What to reserve (`Plan.layout`).
        seconds: Deadline for starting a local cluster, and again for the reservation.
        error_logs: Gets the logs of the roles' processes when the `with` block ends in an error
            (local clusters; a joined cluster keeps its own logs).
        rules: When a server that does not answer counts as lost; None: after half a minute.
        resort: Ends the process if a Ray server is lost and the main thread does not react.
        note: Shows the user what is waited for.
        forks: Processes that the workers of a local cluster are copied from.

    Raises:
        ResourceError: there is no cluster at the address, or its nodes are too few or too small.
        ClusterTokenError: the cluster cannot be joined with the token that is here.
        DeadlineError: Ray did not start, or the cluster's resources did not become free in time.
        ClusterLostError: one of Ray's servers ended or stopped meanwhile.
    """
    # A worker registers once the imports of its fork server are done.
    patience = {"RAY_worker_register_timeout_seconds": str(math.ceil(seconds))}
    for name, value in (_RAY_SWITCHES | patience).items():
        os.environ.setdefault(name, value)
    authentication = Authentication()
    local: PrivateRay | None = None
    guard: Guard | None = None
    try:
        if config.address == "local":
            cpus = _whole(max(config.cpus_per_node or 0.0, layout.cpus))
            own = partial(authentication.own, config.auth)
            local = start_private_ray(cpus, config.object_store_mib, seconds, own, resort, forks)
            local.error_logs = error_logs
            guard = local.guard
        else:
            guard = join(config, authentication, rules or _RULES, resort)
        with guard.explaining():
            if local is not None:
                local.ask(distant_servers(rules or _RULES))
            group = reserve(config, layout, seconds, guard, note)
    except BaseException:
        if local is not None:
            local.close()
        elif config.address != "local":
            _leave_joined(None, guard)
        authentication.restore()
        raise
    return Cluster(config, layout, group, local, guard, authentication, error_logs, forks)


def _leave_joined(group: PlacementGroup | None, guard: Guard | None) -> None:
    """Release the reservation and disconnect; a lost head gets no request."""
    if guard is not None:
        guard.stand_down()
    if group is not None and not (guard is not None and guard.lost):
        within(_RELEASE_SECONDS, lambda: remove_placement_group(group))
    leave()


def _whole(cpus: float) -> int:
    return max(1, int(-(-cpus // 1)))

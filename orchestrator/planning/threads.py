"""Processor threads of each worker: from the cores of its node, and the roles busy beside it."""

from __future__ import annotations

from orchestrator.batching.batch_sizes import ONLINE_STAGES
from orchestrator.config.cluster import Accelerator, ClusterConfig, RoleName
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.model_sizes import policy_size
from orchestrator.planning.placement import Layout, place_roles, usable_nodes
from orchestrator.planning.runs.expand import expand, run_roles
from orchestrator.planning.runs.stage_run import whole
from orchestrator.planning.stage_graph import stage_roles
from orchestrator.process.cores import usable_cores

# Columns of a model's layers per thread, at least: with fewer, waking the other threads takes
# longer than the work.
_COLUMNS = 128
_SCORERS = frozenset({RoleName.reward, RoleName.reference})
_TRAINERS = frozenset({RoleName.policy, RoleName.critic})


def cores_of(cluster: ClusterConfig) -> float:
    """Cores of a node that roles without GPUs compute on."""
    if cluster.cores:
        return cluster.cores
    if cluster.address == "local":
        return usable_cores()
    return min(node.cpus for node in usable_nodes(cluster))


def threads_of(config: Config, stage: StageName, role: RoleName) -> int:
    """Threads of one worker of a role during a stage.

    A configured number counts. Otherwise a worker on a GPU has a thread per CPU that it reserves,
    and workers on CPUs divide the cores of their node among those that compute at the same time;
    a role that computes alone takes all cores that its model is wide enough for.
    """
    cluster = config.cluster
    own = cluster.roles.of(role)
    if own.threads:
        return own.threads
    if role is RoleName.environment:
        return 1
    if cluster.accelerator is Accelerator.cuda:
        return max(1, int(own.cpus))
    together = {role} | _beside(config, stage, role)
    share = share_of(cores_of(cluster), _layout(config), role, together)
    size = policy_size(config)
    return share if size is None else max(1, min(share, size.width // _COLUMNS))


def too_few_cores(cluster: ClusterConfig) -> list[str]:
    """A note if roles will compute on more cores than this process may use."""
    there, cpu = usable_cores(), cluster.accelerator is Accelerator.cpu
    if cluster.address != "local" or not cpu or cluster.cores <= there:
        return []
    return [
        f"cluster.cores={cluster.cores}, and this process may use {there:g}: threads wait for each "
        "other; cluster.cores=0 takes those that there are, and sums in another order"
    ]


def engine_threads(config: Config) -> int:
    """Threads of an engine, which keeps its process and their number in all stages."""
    runs = [run for run in expand(whole(config)) if RoleName.rollout in run.roles]
    return min((threads_of(run.config, run.stage, RoleName.rollout) for run in runs), default=1)


def share_of(cores: float, layout: Layout, role: RoleName, together: set[RoleName]) -> int:
    """Threads of a worker whose node's cores are divided among the workers that are busy.

    Args:
        cores: Cores of each node.
        layout: The nodes, and who is on them.
        role: The role of the worker.
        together: The roles that compute at the same time, `role` included.
    """
    on_nodes = [[place.role for place in node.places] for node in layout.nodes]
    busy = [sum(each in together for each in roles) for roles in on_nodes if role in roles]
    return max(1, int(cores // max(busy, default=1)))


def _layout(config: Config) -> Layout:
    return place_roles(config.cluster, {*run_roles(config)})


def _beside(config: Config, stage: StageName, role: RoleName) -> set[RoleName]:
    """The roles that compute at the same time as a role for most of its work.

    Engines sample alone unless sequences are sampled ahead or scored while others are sampled.
    Trainers spend most of their time in updates, policy and critic side by side; the frozen models
    score beside each other and the critic.
    """
    if stage not in ONLINE_STAGES or stage is StageName.rejection_sampling:
        return set()
    roles, ahead = set(stage_roles(config, stage)), config.algorithm.staleness > 0
    others = {RoleName.rollout} if ahead else set[RoleName]()
    if role in _TRAINERS:
        others |= _TRAINERS
    elif role in _SCORERS:
        others |= _SCORERS | {RoleName.critic}
    elif ahead:
        others |= _TRAINERS
    elif config.rollout.stream_sequences:
        others |= _SCORERS | _TRAINERS
    return others & roles

"""Check of the weight transport: whether it reaches the engines of this run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.batching.batch_sizes import ONLINE_STAGES
from orchestrator.config.cluster import Accelerator, RoleName
from orchestrator.config.schema import Config
from orchestrator.planning.plan import make_plan
from orchestrator.planning.runs.expand import stages_of
from workers.errors import ConfigError
from workers.weights.transport import KIND, WHERE, Transport, find_transport


def check_transport(config: Config) -> None:
    """Check the properties of the transport against the places of policy and engines.

    `check_own_parts` has imported a user's transport in another process before.

    Raises:
        ConfigError: It cannot be used for this run.
    """
    if not {*ONLINE_STAGES} & stages_of(config):
        return
    name = config.rollout.transport
    transport = find_transport(name, str(Path.cwd()))
    if not transport.spans_nodes and _on_several_nodes(config):
        raise ConfigError(
            f"{name} does not reach engines on other nodes than the policy's first worker",
            where=WHERE,
            fix=_use(lambda other: other.spans_nodes),
        )
    if not transport.needs_gpu:
        return
    if config.cluster.accelerator is not Accelerator.cuda:
        raise ConfigError(
            f"{name} needs GPUs", where=WHERE, fix=_use(lambda other: not other.needs_gpu)
        )
    if min(config.cluster.roles.rollout.gpus, config.cluster.roles.policy.gpus) < 1:
        raise ConfigError(
            f"{name} cannot connect two processes on one GPU",
            where=WHERE,
            fix=_use(lambda other: not other.needs_gpu)
            + ", or give rollout and policy workers whole GPUs",
        )


def _on_several_nodes(config: Config) -> bool:
    if config.cluster.roles.rollout.most > config.cluster.roles.rollout.workers:
        return True  # extra engines start wherever the cluster has room
    layout = make_plan(config).layout
    engines = range(config.cluster.roles.rollout.workers)
    nodes = {layout.node_of(RoleName.rollout, rank) for rank in engines}
    return nodes != {layout.node_of(RoleName.policy, 0)}


def _use(suits: Callable[[Transport], bool]) -> str:
    return "use " + " or ".join(name for name in KIND.names() if suits(find_transport(name)))

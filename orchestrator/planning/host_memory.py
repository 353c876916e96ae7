"""Check of host memory: whether the roles of a local CPU run fit into the machine's memory."""

from __future__ import annotations

import psutil

from orchestrator.config.cluster import Accelerator
from orchestrator.config.schema import Config
from orchestrator.planning.plan import make_plan
from workers.errors import ResourceError

_GIB = 1 << 30


def check_host_memory(config: Config) -> tuple[str, ...]:
    """Refuse roles whose weights alone exceed the memory; return a note if the estimate does.

    Raises:
        ResourceError: weights, gradients and moments need more memory than the machine has.
    """
    cluster = config.cluster
    if (
        cluster.accelerator is not Accelerator.cpu
        or cluster.address != "local"
        or cluster.nodes != 1
    ):
        return ()
    memory = make_plan(config).memory
    there = psutil.virtual_memory()
    least = sum(role.workers * role.least for role in memory)
    if least > there.total:
        raise ResourceError(
            f"the models of all roles need {least / _GIB:,.3g} GiB, and this machine has "
            f"{there.total / _GIB:,.3g}",
            where="cluster",
            fix="take a smaller model, fewer workers, or a machine with more memory",
        )
    estimate = sum(role.workers * role.total for role in memory)
    if estimate <= there.available:
        return ()
    return (
        f"all roles together are estimated at {estimate / _GIB:,.3g} GiB, and this machine has "
        f"{there.available / _GIB:,.3g} free: lower trainer.micro_batch_tokens, or set "
        "model.gradient_checkpointing=true",
    )

"""The one change of a configuration by which an estimated PPO iteration gains most."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from orchestrator.config.cluster import RoleName
from orchestrator.config.schema import Config
from orchestrator.planning.backbones import role_sizes
from orchestrator.planning.gpu_memory import check_gpu_memory
from orchestrator.planning.model_sizes import ModelSize, role_memory
from orchestrator.planning.placement import Layout, place_roles
from orchestrator.planning.speed.hardware import Hardware, hardware_of
from orchestrator.planning.speed.iteration import LENGTH_SHARE, StepEstimate, estimate_step
from workers.errors import RehearsalError

_WORTH = 1.05  # smaller gains are below what the estimate can tell

Sizes = Mapping[RoleName, ModelSize | None]


@dataclass(frozen=True, slots=True)
class Change:
    """Keys to set, and the throughput that is estimated with them over that without."""

    keys: str
    gain: float


def first_change(
    config: Config, roles: tuple[RoleName, ...], sizes: Sizes, gpu: Hardware, now: StepEstimate
) -> Change | None:
    """The change that gains most among a few usual ones; None if none gains 5 %.

    A change that does not fit on the cluster or into the GPUs' memory is left out.
    """
    best: Change | None = None
    for keys, change in _candidates(config, roles):
        changed = copy.deepcopy(config)
        change(changed)
        try:
            layout = place_roles(changed.cluster, roles)
            memory = tuple(
                role_memory(changed, role, size) for role in roles if (size := sizes.get(role))
            )
            check_gpu_memory(changed, layout, memory)
            found = estimate_step(changed, layout, sizes, gpu)
        except RehearsalError:  # no room for it
            continue
        if found is not None and found.throughput >= _WORTH * now.throughput:
            gain = found.throughput / now.throughput
            if best is None or gain > best.gain:
                best = Change(keys, gain)
    return best


def _candidates(
    config: Config, roles: tuple[RoleName, ...]
) -> Iterator[tuple[str, Callable[[Config], None]]]:
    if config.algorithm.staleness == 0 and not config.rollout.sleep:
        yield "algorithm.staleness=1 algorithm.importance_cap=2.0", _ahead
    if config.rollout.enforce_eager:
        yield "rollout.enforce_eager=false", _graphs
    if config.trainer.zero_stage == 3:
        tokens = 2 * config.trainer.micro_batch_tokens
        yield f"trainer.micro_batch_tokens={tokens}", _larger
    for giver in roles:
        for taker in roles:
            moved = _moved(config, giver, taker)
            if giver is not taker and moved is not None:
                given, taken = moved
                yield (
                    f"cluster.roles.{giver.value}.workers={given} "
                    f"cluster.roles.{taker.value}.workers={taken}",
                    _mover(giver, given, taker, taken),
                )


def _moved(config: Config, giver: RoleName, taker: RoleName) -> tuple[int, int] | None:
    """Workers of both roles after whole GPUs went from one to the other; None if they cannot."""
    source, target = config.cluster.roles.of(giver), config.cluster.roles.of(taker)
    if source.gpus < 1 or target.gpus < 1:
        return None
    gpus = max(source.gpus, target.gpus)
    gone, come = gpus / source.gpus, gpus / target.gpus
    if gone != int(gone) or come != int(come) or source.workers <= gone:
        return None
    return source.workers - int(gone), target.workers + int(come)


def _mover(giver: RoleName, given: int, taker: RoleName, taken: int) -> Callable[[Config], None]:
    def move(config: Config) -> None:
        config.cluster.roles.of(giver).workers = given
        config.cluster.roles.of(taker).workers = taken

    return move


def _ahead(config: Config) -> None:
    config.algorithm.staleness = 1


def _graphs(config: Config) -> None:
    config.rollout.enforce_eager = False


def _larger(config: Config) -> None:
    config.trainer.micro_batch_tokens *= 2


def estimate_lines(config: Config, layout: Layout, size: ModelSize | None) -> tuple[str, ...]:
    """The estimate of a run's PPO iteration for its plan; () where there is none."""
    if size is None:
        return ()
    sizes, gpu = role_sizes(config, size), hardware_of(config)
    now = estimate_step(config, layout, sizes, gpu)
    if now is None:
        return ()
    phases = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in now.phases.items())
    idle = ", ".join(f"{role.value} {share:.0%}" for role, share in now.idle.items())
    change = first_change(config, layout.roles, sizes, gpu, now)
    told = "none of the usual changes gains 5 %"
    if change is not None:
        told = f"{change.keys} ({change.gain:.2f} times as fast)"
    return (
        "a PPO iteration, estimated and never measured on this cluster",
        f"  time           {now.seconds:.3g} s, {now.throughput:.3g} sequences/s ({phases})",
        f"  idle           {idle}",
        f"  change first   {told}",
        f"  assumed        prompts and responses of {LENGTH_SHARE:.0%} of their limits",
        *(f"  {'':<15}{line}" for line in gpu.assumptions),
    )

"""Check of GPU memory: whether the roles' models fit into their GPUs, by the plan's estimates.

The estimates omit activations, so a model that exceeds them cannot fit and is refused; one that
fits narrowly gets a note.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.config.cluster import Accelerator, RoleName
from orchestrator.config.schema import Config
from orchestrator.planning.model_sizes import RoleMemory, gpu_bytes
from orchestrator.planning.placement import Layout
from workers.errors import ResourceError

_NARROW = 0.9  # of a GPU's memory; above it, little is left for activations and library buffers
_GIB = 1 << 30
_TRAINERS = (RoleName.policy, RoleName.critic)


def check_gpu_memory(config: Config, layout: Layout, memory: Sequence[RoleMemory]) -> list[str]:
    """Refuse workers that need more than their GPU's memory; return notes on narrow fits.

    A worker with whole GPUs computes on one of them. Engines are excepted: their share is checked
    with the KV cache. The needs of workers that share a GPU are added up, GPU by GPU.

    Raises:
        ResourceError: names the role, the memory it needs and the memory available.
    """
    if config.cluster.accelerator is not Accelerator.cuda:
        return []
    notes: list[str] = []
    limit = gpu_bytes(config)
    for who, need, least in _needs(config, layout, memory):
        name = who.value if isinstance(who, RoleName) else who
        of = f"of {limit / _GIB:.3g} GiB, activations not counted"
        if least > limit:
            raise ResourceError(
                f"{name} needs {least / _GIB:.3g} {of}", where=_where(who), fix=_fix(who)
            )
        if need > _NARROW * limit:
            frozen = "" if least == need else ", less what model.freeze saves"
            notes.append(f"{name} needs {need / _GIB:.3g} {of}{frozen}")
    return [*notes, *_loading_notes(config, layout, memory)]


def _needs(
    config: Config, layout: Layout, memory: Sequence[RoleMemory]
) -> Iterator[tuple[RoleName | str, int, int]]:
    """Yield (role, need, least) per worker with whole GPUs, then per kind of shared GPU.

    `need` is the estimate in bytes and `least` a lower bound: frozen weights have neither gradient
    nor optimizer state, and the number of frozen weights depends on their names.
    """
    sizes = {each.role: each for each in memory}
    for each in memory:
        if config.cluster.roles.of(each.role).gpus >= 1 and each.role is not RoleName.rollout:
            yield each.role, each.device, each.least_device
    shared = [share for node in layout.nodes for share in node.shared]
    kinds = {tuple(sorted(place.role.value for place in share.places)) for share in shared}
    for kind in sorted(kinds):
        sharing = [sizes[RoleName(name)] for name in kind if RoleName(name) in sizes]
        if sharing:
            names = ", ".join(each.role.value for each in sharing)
            yield f"what shares a GPU ({names})", *_shared(config, sharing)


def _shared(config: Config, sharing: Sequence[RoleMemory]) -> tuple[int, int]:
    """Bytes that the workers on one GPU need together: (estimate, lower bound).

    With `rollout.sleep`, engines and trainers alternate, and the larger need of the two counts.
    """
    share = int(config.rollout.gpu_memory_fraction * gpu_bytes(config))
    engines = share * sum(r.role is RoleName.rollout for r in sharing)
    others = [r for r in sharing if r.role is not RoleName.rollout]
    training = sum(r.device for r in others)
    training_least = sum(r.least_device for r in others)
    if not config.rollout.sleep:
        return engines + training, engines + training_least
    sampling = engines + sum(r.resting for r in others)
    # Frozen weights have no optimizer state that could be moved to the host.
    sampling_least = engines + sum(min(r.resting, r.least_device) for r in others)
    return max(training, sampling), max(training_least, sampling_least)


def _where(who: RoleName | str) -> str:
    return f"cluster.roles.{who.value}" if isinstance(who, RoleName) else "cluster.roles"


def _fix(who: RoleName | str) -> str:
    real = "set cluster.gpu_memory_gib to what the GPUs have"
    if who in _TRAINERS:
        return (
            "raise its workers, use trainer.zero_stage=3 or trainer.offload=optimizer, lower "
            f"trainer.micro_batch_tokens, or {real}"
        )
    if isinstance(who, RoleName):
        return (
            "a model that only scores must fit one GPU: lower reward.micro_batch_tokens, use "
            f"a smaller model, or {real}"
        )
    return f"give these roles more GPUs, or {real}"


def _loading_notes(config: Config, layout: Layout, memory: Sequence[RoleMemory]) -> Iterator[str]:
    """Notes on nodes where loading exceeds a GPU's size: each trainer rank reads all weights."""
    for each in memory:
        if each.role not in _TRAINERS:
            continue
        most = max(sum(p.role is each.role for p in node.places) for node in layout.nodes)
        if most * each.loading > gpu_bytes(config):
            yield (
                f"while {each.role.value} loads, a node holds {most} copies of its weights in host "
                f"memory, {most * each.loading / _GIB:,.0f} GiB"
            )

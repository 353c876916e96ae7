"""Checks of GPUs and of collectives on this machine, from the answers of the torch process."""

from __future__ import annotations

from typing import Any

from orchestrator.config.cluster import Accelerator
from orchestrator.config.engines import Precision
from orchestrator.doctor.findings import Finding, failure, good, skipped, warning
from orchestrator.doctor.subject import Subject
from orchestrator.planning.model_sizes import gpu_bytes
from workers.errors import RehearsalError, RoleError

_GIB = 1 << 30
_FREE = 0.9  # fraction of a GPU's memory that is free while nobody uses it
_BF16 = (8, 0)  # first compute capability with bf16 (Ampere)
_ON_CPU = "the roles compute on CPUs (cluster.accelerator=cpu)"
_ELSEWHERE = "this machine has none; those of the cluster are counted under nodes"


def check_gloo(subject: Subject) -> Finding:
    """Whether two processes of this machine can sum a tensor."""
    if torch_is_missing(subject):
        return skipped("torch cannot be imported")
    sent = subject.torch.of("gloo")["bytes"]
    return good(f"two processes summed {sent >> 20} MiB through 127.0.0.1")


def check_gpus(subject: Subject) -> Finding:
    """Whether the driver works with this torch, and there are as many GPUs as the plan takes."""
    found = _found(subject)
    if isinstance(found, Finding):
        return found
    gpus = found["gpus"]
    here = subject.torch.of("import")
    words = f"{len(gpus)} x {gpus[0]['name']}, driver {found['driver'] or 'unknown'}, "
    words += f"torch for CUDA {here['cuda']}"
    if subject.local and subject.layout is not None and subject.layout.gpus > len(gpus):
        return failure(
            f"the plan takes {subject.layout.gpus:g} GPUs, this machine has {words}",
            "lower cluster.roles.ROLE.workers or .gpus, use cluster=one_gpu, or see whether "
            "CUDA_VISIBLE_DEVICES hides some",
        )
    return good(words)


def check_capability(subject: Subject) -> Finding:
    """Whether torch has kernels for these GPUs, and they can compute in the run's precision."""
    found = _found(subject)
    if isinstance(found, Finding):
        return skipped(found.what)
    worst = min(found["gpus"], key=lambda gpu: gpu["capability"])
    major, minor = worst["capability"]
    config = subject.config
    if Precision.bf16 in (config.trainer.precision, config.rollout.precision) and (
        (major, minor) < _BF16
    ):
        return failure(
            f"{worst['name']} has compute capability {major}.{minor}, bf16 needs 8.0",
            "use trainer=zero1 or zero3 and rollout.precision=fp32, or newer GPUs",
        )
    if not _has_kernels(major, minor, found["architectures"]):
        return failure(
            f"{worst['name']} has compute capability {major}.{minor}, and this torch has kernels "
            f"for {', '.join(found['architectures'])} only",
            "install a build of torch for this GPU, or take another GPU",
        )
    return good(f"compute capability {major}.{minor}")


def _has_kernels(major: int, minor: int, architectures: list[str]) -> bool:
    """Binaries serve later minor versions of their major one; PTX (compute_) all later GPUs."""
    for each in architectures:
        kind, _, number = each.partition("_")
        digits = number.rstrip("af")
        if not digits.isdigit():
            continue
        own = (int(digits[:-1]), int(digits[-1]))
        if own <= (major, minor) and (kind == "compute" or own[0] == major):
            return True
    return False


def check_gpu_memory(subject: Subject) -> Finding:
    """Whether the GPUs have the memory that the plan counts on, and nobody else uses it."""
    found = _found(subject)
    if isinstance(found, Finding):
        return skipped(found.what)
    least = min(gpu["total"] for gpu in found["gpus"])
    planned = gpu_bytes(subject.config)
    if least < _FREE * planned:
        return failure(
            f"a GPU has {least / _GIB:.3g} GiB, and the plan counts on "
            f"cluster.gpu_memory_gib={planned / _GIB:g}",
            f"set cluster.gpu_memory_gib={least / _GIB:.3g}",
        )
    used = [i for i, gpu in enumerate(found["gpus"]) if gpu["free"] < _FREE * gpu["total"]]
    if used:
        gpu = found["gpus"][used[0]]
        return warning(
            f"of GPU {used[0]} only {gpu['free'] / _GIB:.3g} of {gpu['total'] / _GIB:.3g} GiB are "
            "free",
            "`nvidia-smi` lists the processes that use it; end them, or lower "
            "rollout.gpu_memory_fraction",
        )
    return good(f"{least / _GIB:.3g} GiB or more on each, free")


def check_nccl(subject: Subject) -> Finding:
    """Whether NCCL works between two GPUs of this machine."""
    found = _found(subject)
    if isinstance(found, Finding):
        return skipped(found.what)
    answer = subject.torch.of("nccl")
    return good(f"{answer['ranks']} GPU(s) summed {answer['bytes'] >> 20} MiB")


def torch_is_missing(subject: Subject) -> bool:
    """Whether torch cannot be imported, which a check says."""
    try:
        subject.torch.of("import")
    except RehearsalError:
        return True
    return False


def _found(subject: Subject) -> dict[str, Any] | Finding:
    """The GPUs of this machine; or why there are none, as a finding."""
    if subject.config.cluster.accelerator is not Accelerator.cuda:
        return skipped(_ON_CPU)
    if torch_is_missing(subject):
        return skipped("torch cannot be imported")
    try:
        found = subject.torch.of("gpus")
    except RoleError as error:
        if not subject.local:
            return skipped(f"{_ELSEWHERE} ({error.what})")
        return failure(
            f"torch cannot use a GPU: {error.what}",
            "install or update NVIDIA's driver (`nvidia-smi` must work), run `make setup-gpu`, and "
            "give containers the GPUs (--gpus all); or use cluster=local_cpu",
        )
    if found["gpus"]:
        return found
    if not subject.local:
        return skipped(_ELSEWHERE)
    return failure("torch sees no GPU", "see whether CUDA_VISIBLE_DEVICES hides them")

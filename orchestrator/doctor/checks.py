"""The list of checks, in the order in which they are numbered."""

from __future__ import annotations

from orchestrator.config.engines import RolloutEngine
from orchestrator.doctor import cluster, gpus, installation, machine, models
from orchestrator.doctor.findings import Check, Finding, good, skipped
from orchestrator.doctor.subject import Subject

TORCH_SECONDS = 60.0  # for the process that imports torch; a cold disk takes half of it
RAY_SECONDS = 60.0
ENGINE_SECONDS = 180.0
NODE_SECONDS = 30.0  # for an answer of one node
_AFTER = 5.0  # a check outlasts the process that it asks

_TORCH, _RAY = TORCH_SECONDS + _AFTER, RAY_SECONDS + _AFTER


def check_engine(subject: Subject) -> Finding:
    """Whether the run's engine starts on a tiny model and samples."""
    engine = subject.config.rollout.engine
    answer = subject.engine.of("generate")
    name = "vLLM" if engine is RolloutEngine.vllm else "transformers"
    return good(f"{name} sampled {answer['tokens']} tokens, in {answer['seconds']:g} s")


def _no_engine(_subject: Subject) -> Finding:
    return skipped("--engine starts one on a tiny model")


def all_checks(*, engine: bool) -> list[Check]:
    """Every check; `engine`: the one that starts an engine too."""
    return [
        Check("python", installation.check_python),
        Check("packages", installation.check_packages),
        Check("vllm build", installation.check_vllm),
        Check("torch", installation.check_torch, _TORCH),
        Check("torchvision", installation.check_siblings, _TORCH),
        Check("plan", cluster.check_plan),
        Check("cores", machine.check_cores),
        Check("memory", machine.check_memory),
        Check("shared memory", machine.check_shared_memory),
        Check("memfd", machine.check_memfd),
        Check("open files", machine.check_open_files),
        Check("temporary files", machine.check_temporary),
        Check("run folder", machine.check_disk),
        Check("hub cache", models.check_hub_cache),
        Check("loopback", machine.check_loopback),
        Check("gloo", gpus.check_gloo, _TORCH),
        Check("gpus", gpus.check_gpus, _TORCH),
        Check("gpu kernels", gpus.check_capability, _TORCH),
        Check("gpu memory", gpus.check_gpu_memory, _TORCH),
        Check("nccl", gpus.check_nccl, _TORCH),
        Check("ray", cluster.check_ray, _RAY),
        Check("nodes", cluster.check_nodes, _RAY),
        Check("node packages", cluster.check_node_packages, _RAY),
        Check("clocks", cluster.check_clocks, _RAY),
        Check("shared folder", cluster.check_shared_folder, _RAY),
        Check("engine", check_engine if engine else _no_engine, ENGINE_SECONDS + _AFTER),
    ]

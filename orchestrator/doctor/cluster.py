"""Checks of the plan and of a joined Ray cluster, from the answers of the Ray process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.doctor.findings import Finding, failure, good, of_error, skipped, warning
from orchestrator.doctor.subject import Subject
from workers.errors import RehearsalError

_SKEW_SECONDS = 2.0
_LOCAL = "the run starts its own servers on this machine (cluster.address=local)"


def check_plan(subject: Subject) -> Finding:
    """Whether the roles fit on the configured cluster, and sizes fit together."""
    if subject.trouble is not None:
        return of_error(subject.trouble)
    if subject.plan is None:
        return skipped("no experiment is given: add +experiment=NAME and the keys of the run")
    layout = subject.plan.layout
    return good(
        f"{subject.plan.experiment}: {layout.cpus:g} CPUs and {layout.gpus:g} GPUs on "
        f"{len(layout.nodes)} node(s)"
    )


def check_ray(subject: Subject) -> Finding:
    """Whether the cluster answers, and accepts the token that is here."""
    if subject.local:
        return skipped(_LOCAL)
    answer = subject.ray.of("join")
    return good(f"the cluster at {answer['address']} answers with {answer['nodes']} node(s)")


def _joined(judge: Callable[[Subject], Finding]) -> Callable[[Subject], Finding]:
    """A check that is made where a cluster was joined, and skipped elsewhere."""

    def look(subject: Subject) -> Finding:
        if subject.local:
            return skipped(_LOCAL)
        try:
            subject.ray.of("join")
        except RehearsalError:
            return skipped("the cluster was not joined: see the check ray")
        return judge(subject)

    return look


@_joined
def check_nodes(subject: Subject) -> Finding:
    """Whether the cluster's nodes have the CPUs and GPUs of the plan."""
    if subject.layout is None:
        return skipped("there is no plan")
    nodes = subject.ray.of("nodes")
    there = ", ".join(f"({cpus:g} CPUs, {gpus:g} GPUs)" for cpus, gpus in nodes)
    return good(f"the plan's {len(subject.layout.nodes)} node(s) fit on {there}")


@_joined
def check_node_packages(subject: Subject) -> Finding:
    """Whether every node runs our code, with the same packages as this machine."""
    nodes = subject.ray.of("looks")
    for each in nodes:
        if error := each.get("error"):
            return failure(
                f"node {each['node']} cannot run this code: {error}",
                "install the same checkout and environment on every node, and start Ray there by "
                "its .venv/bin/ray",
            )
    ours: dict[str, Any] = subject.ray.of("join")["packages"]
    for each in nodes:
        for name in sorted(ours | each["packages"]):
            here, there = ours.get(name, "none"), each["packages"].get(name, "none")
            if here != there:
                return failure(
                    f"{name} is {here} on this machine and {there} on {each['node']}",
                    "run the same `make setup` or `make setup-gpu` on every node",
                )
    return good(f"{len(nodes)} node(s) have the packages of this machine")


@_joined
def check_clocks(subject: Subject) -> Finding:
    """Whether the nodes' clocks agree, by which people compare logs and runs are ordered."""
    nodes = [each for each in subject.ray.of("looks") if each.get("offset") is not None]
    if not nodes:
        return skipped("no node answered")
    worst = max(nodes, key=lambda each: abs(each["offset"]))
    if abs(worst["offset"]) > _SKEW_SECONDS:
        return warning(
            f"the clock of node {worst['node']} is {worst['offset']:+.1f} s off this machine's",
            "synchronise the clocks by NTP (chrony, systemd-timesyncd)",
        )
    return good(f"within {abs(worst['offset']):.2f} s of this machine's")


@_joined
def check_shared_folder(subject: Subject) -> Finding:
    """Whether files that other nodes write in the run folder are seen on this machine."""
    nodes = [each for each in subject.ray.of("looks") if "wrote" in each]
    fix = "choose run.dir on a file system that all nodes mount at the same path"
    for each in nodes:
        if each["wrote"]:
            return failure(f"node {each['node']} cannot write in run.dir: {each['wrote']}", fix)
        if not each["seen"]:
            return failure(f"a file of node {each['node']} in run.dir is not seen here", fix)
    return good(f"{len(nodes)} node(s) write where this machine reads")

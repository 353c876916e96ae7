"""Joining a running Ray cluster: find it, ask whether it accepts this process, connect."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil
import ray

from orchestrator.cluster.authentication import Authentication
from orchestrator.cluster.private_ray import QUIET, own_signals
from orchestrator.config.cluster import ClusterConfig
from orchestrator.process.forced_exit import LastResort
from orchestrator.process.temporary_folders import home_name
from orchestrator.supervision.ray_servers import distant_servers
from orchestrator.supervision.server_guard import Guard
from orchestrator.supervision.worker_life import Rules
from workers.errors import ResourceError

GLANCE_SECONDS = 1.0
_PORTS = range(1, 1 << 16)


def join(
    config: ClusterConfig, authentication: Authentication, rules: Rules, resort: LastResort | None
) -> Guard:
    """Connect this process to the cluster at `config.address`; returns the guard of its servers.

    Raises:
        ResourceError: no cluster answers at the address.
        ClusterTokenError: it cannot be joined with the token that is here.
    """
    connect(config, authentication)
    guard = Guard(distant_servers(rules), GLANCE_SECONDS, resort)
    guard.start()
    return guard


def connect(config: ClusterConfig, authentication: Authentication) -> None:
    """Connect this process to the cluster at `config.address`.

    Raises:
        ResourceError: no cluster answers at the address.
        ClusterTokenError: it cannot be joined with the token that is here.
    """
    try:
        address = find_address(config.address)
        authentication.join(config.auth, address)
        with own_signals():
            ray.init(address=address, **QUIET)
    except (ConnectionError, TimeoutError) as error:
        raise no_answer(config, error) from error


def no_answer(config: ClusterConfig, error: Exception) -> ResourceError:
    """The error for an address at which no cluster answers."""
    return ResourceError(
        f"no Ray cluster answers at {config.address!r}: {error}",
        where="cluster.address",
        fix="start one with `ray start --head`, name one by cluster.address=HOST:PORT, or use "
        "cluster.address=local",
    )


def find_address(address: str) -> str:
    """HOST:PORT of the cluster that `cluster.address` names.

    Raises:
        ConnectionError: it names none.
    """
    named = address
    if address == "auto":
        named = os.environ.get("RAY_ADDRESS") or find_cluster()
    host, _, port = named.rpartition(":")
    if not host or "/" in host or not (port.isdecimal() and int(port) in _PORTS):
        where = "RAY_ADDRESS" if address == "auto" else "cluster.address"
        raise ConnectionError(f"{where}={named} is not HOST:PORT")
    return named


def find_cluster(processes: Iterable[psutil.Process] | None = None) -> str:
    """The address of the one Ray cluster on this machine that is not private to a run.

    Ray's own search would also find the private cluster of another run and take its resources.

    Args:
        processes: Processes to search; None: all of this machine.

    Raises:
        ConnectionError: there is none, or more than one.
    """
    found: set[str] = set()
    for process in psutil.process_iter() if processes is None else processes:
        with suppress(psutil.Error):
            words = process.cmdline()
            if words and Path(words[0]).name == "raylet" and not _private(words):
                found |= {w.partition("=")[2] for w in words if w.startswith("--gcs-address=")}
    if len(found) == 1:
        return found.pop()
    if found:
        raise ConnectionError(f"there are several on this machine: {', '.join(sorted(found))}")
    raise ConnectionError("none runs on this machine, apart from private ones of other runs")


def _private(words: list[str]) -> bool:
    sessions = [Path(w.partition("=")[2]) for w in words if w.startswith("--session_dir=")]
    prefix = home_name().rpartition("-")[0] + "-"
    return any(part.startswith(prefix) for path in sessions for part in path.parts)

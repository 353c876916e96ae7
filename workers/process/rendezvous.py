"""Where the ranks of a process group find each other: a store that rank 0 serves."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import torch.distributed as dist

_listening: dict[int, socket.socket] = {}  # by port, from `listen` until a store takes it over


def listen() -> tuple[str, int]:
    """Take a free port for a store of this process; other programs cannot get it in between.

    Returns:
        This host as its peers see it, and the port. It listens on that address alone.
    """
    host = _own_address()
    server = socket.socket()
    server.bind((host, 0))
    server.listen()
    port = server.getsockname()[1]
    _listening[port] = server
    return host, port


def store(host: str, port: int, world_size: int, rank: int, timeout: timedelta) -> dist.TCPStore:
    """The store of a group; rank 0 serves it at the address that its `listen` returned.

    Raises:
        RuntimeError: torch could not reach it within the timeout.
    """
    server = _listening.pop(port, None) if rank == 0 else None
    return dist.TCPStore(
        host,
        port,
        world_size,
        is_master=rank == 0,
        wait_for_workers=False,
        timeout=timeout,
        master_listen_fd=server.detach() if server else None,
    )


def _own_address() -> str:
    """Address of the interface that leads outward (nothing is sent), or loopback.

    REHEARSAL_HOST, where it is set, says it: on one machine no other one has to reach it.
    """
    if told := os.environ.get("REHEARSAL_HOST"):
        return told
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address reserved for documentation (RFC 5737)
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]

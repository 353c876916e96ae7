"""Rendezvous of a process group's ranks: a TCP store that rank 0 serves."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch.distributed as dist

from workers.process.own_address import own_address

_listening: dict[int, socket.socket] = {}  # by port, from `listen` until a store takes it over


def listen() -> tuple[str, int]:
    """Reserve a free port for a store of this process by listening on it.

    Returns:
        This host's address for its peers, and the port. It listens only on that address.
    """
    host = own_address()
    server = socket.socket()
    server.bind((host, 0))
    server.listen()
    port = server.getsockname()[1]
    _listening[port] = server
    return host, port


def store(host: str, port: int, world_size: int, rank: int, timeout: timedelta) -> dist.TCPStore:
    """The store of a group; rank 0 serves it at the address that its `listen` returned.

    Raises:
        RuntimeError: torch could not reach the store within the timeout.
    """
    import torch.distributed as dist  # a second, which the driver does without

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

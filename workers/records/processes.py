"""Records of processes: addresses and identities of workers, and the files that they wrote."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RankAddress:
    """One trainer rank's place in its process group, and the group's rendezvous."""

    rank: int
    world_size: int
    host: str
    port: int
    local_rank: int = 0


@dataclass(frozen=True, slots=True)
class RoleInfo:
    """Identity of one actor: written into summary.json."""

    role: str
    rank: int
    pid: int
    node: str
    device: str

    @classmethod
    def here(cls, role: str, rank: int, device: str) -> RoleInfo:
        """Identity and location of this process."""
        return cls(role, rank, os.getpid(), platform.node(), device)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Name, size and hash of one checkpoint file when it was written."""

    name: str
    nbytes: int
    sha256: str

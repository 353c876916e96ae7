"""Records of processes: where a rank is found, and the files that it wrote."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RankAddress:
    """Where one trainer rank stands in its process group."""

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


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a checkpoint, as it was when it was written."""

    name: str
    nbytes: int
    sha256: str

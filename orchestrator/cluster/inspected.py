"""What a look at a cluster is given (`inspection`); imports no Ray."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.config.cluster import ClusterConfig
from orchestrator.planning.placement import Layout


@dataclass(frozen=True, slots=True)
class Inspected:
    """The cluster, and what a run needs of it."""

    cluster: ClusterConfig
    layout: Layout | None  # None: there is no plan
    folder: str  # an existing folder on the file system of the run folder
    seconds: float  # for an answer of a node

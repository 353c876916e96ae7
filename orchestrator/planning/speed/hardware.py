"""Rates of GPUs, from their data sheets, and the shares of them that are assumed to be reached."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.config.schema import Config


@dataclass(frozen=True, slots=True)
class Hardware:
    """Rates of one GPU, and the shares of them that this kind of work reaches."""

    name: str
    flops: float  # bf16, per second
    memory: float  # bytes/s
    node_link: float  # bytes/s to GPUs of the same node
    network: float  # bytes/s to GPUs of other nodes
    host_link: float = 25e9  # bytes/s to host memory
    forward: float = 0.5
    training: float = 0.4
    decoding: float = 0.7  # of the memory's rate
    links: float = 0.6

    @property
    def assumptions(self) -> tuple[str, ...]:
        """The rates in words, a line each."""
        return (
            f"{self.name}, {self.flops / 1e12:,.0f} TFLOP/s, {self.training:.0%} of it in training "
            f"and {self.forward:.0%} in other passes",
            f"memory of {self.memory / 1e12:.2g} TB/s, {self.decoding:.0%} of it in decoding",
            f"links of {self.node_link / 1e9:,.0f} GB/s within a node and "
            f"{self.network / 1e9:,.0f} between nodes, {self.links:.0%} of it",
        )


H100 = Hardware("H100", 989e12, 3.35e12, 450e9, 50e9)
H200 = Hardware("H200", 989e12, 4.8e12, 450e9, 50e9)


def hardware_of(config: Config) -> Hardware:
    """The GPU assumed for a cluster, by the memory that the configuration names."""
    return H200 if config.cluster.gpu_memory_gib > 100 else H100

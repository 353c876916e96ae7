"""Settings of OpenMP, which its runtime reads from the environment when a process loads it."""

from __future__ import annotations

# Turns of a thread that waits for its siblings before it sleeps, about half a millisecond. Between
# two operations of a model there is less: at width 512 two threads that sleep at once are 1.3 times
# as fast as one, and 1.6 times with this. More than that would hold a core that others need.
_SPINS = 10_000


def openmp(threads: int) -> dict[str, str]:
    """Environment variables for a process that computes with so many threads."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": str(_SPINS),
    }

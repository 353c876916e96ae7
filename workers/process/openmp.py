"""Settings of OpenMP, which its runtime reads from the environment when a process loads it."""

from __future__ import annotations


def openmp(threads: int) -> dict[str, str]:
    """Environment variables for a process that computes with so many threads.

    Threads that wait for their siblings sleep at once: while they spin, they hold cores that other
    roles need.
    """
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}

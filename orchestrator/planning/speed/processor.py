"""Whether bf16 pays on this machine's processor, for the notes of the plan."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

from orchestrator.config.cluster import Accelerator
from orchestrator.config.engines import Precision
from orchestrator.config.schema import Config

# Instructions that multiply bf16 numbers, the fastest first, and the flags that announce them.
_UNITS = {"AMX": "amx_bf16", "AVX512-BF16": "avx512_bf16", "BF16": "bf16"}
# Parameters of the policy -> processor seconds of a PPO step in fp32 over those in bf16: raw vLLM
# and plain PyTorch, one or two threads, an AMX processor (benchmarks/peers/run_floor.py).
_AMX_GAIN = {0.5e6: 0.98, 0.9e6: 0.75, 8.4e6: 1.5, 27e6: 1.8, 71e6: 2.1}
_WORTH, _SLOWER = 1.2, 0.9  # between them, nothing is advised


def bf16_unit(cpuinfo: str) -> str:
    """Name of the fastest bf16 instructions in the text of /proc/cpuinfo; "" = none."""
    lines = [line for line in cpuinfo.splitlines() if line.startswith(("flags", "Features"))]
    flags = set(lines[0].partition(":")[2].split()) if lines else set()
    return next((unit for unit, flag in _UNITS.items() if flag in flags), "")


def amx_gain(parameters: int) -> float:
    """How many times as fast a PPO step is in bf16 with AMX; beyond the sizes, the last one's."""
    sizes = sorted(_AMX_GAIN.items())
    place = math.log(min(max(parameters, sizes[0][0]), sizes[-1][0]))
    for (small, low), (large, high) in pairwise(sizes):
        if place <= math.log(large):
            share = (place - math.log(small)) / (math.log(large) - math.log(small))
            return low + share * (high - low)
    return sizes[-1][1]


def precision_notes(
    config: Config, parameters: int | None, cpuinfo: Path = Path("/proc/cpuinfo")
) -> list[str]:
    """Advice on bf16 for a run whose roles compute on CPUs; nothing where the CPU is unknown.

    Args:
        config: The run's configuration.
        parameters: Of the policy; None = not known yet.
        cpuinfo: The kernel's description of the processors.
    """
    if config.cluster.accelerator is not Accelerator.cpu or not cpuinfo.is_file():
        return []
    unit = bf16_unit(cpuinfo.read_text(encoding="utf-8", errors="replace"))
    bf16 = Precision.bf16 in (config.trainer.precision, config.rollout.precision)
    stage = config.trainer.zero_stage
    if bf16 and not unit:
        return [
            "this CPU has no bf16 instructions: it emulates them, and fp32 is several times as "
            f"fast (trainer=zero{stage})"
        ]
    if unit != "AMX" or parameters is None:
        return []
    gain = amx_gain(parameters)
    if bf16 and gain < _SLOWER:
        return [
            f"bf16 takes about {1 / gain:.1f} times as long as fp32 on a CPU at {parameters:,} "
            f"parameters: trainer=zero{stage} is faster"
        ]
    if not bf16 and gain >= _WORTH:
        return [
            f"this CPU has AMX: trainer=zero{stage}_bf16 is about {gain:.1f} times as fast at "
            f"{parameters:,} parameters (engines follow; weights are sent in bf16)"
        ]
    return []

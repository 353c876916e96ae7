"""deepspeed accepts and understands every configuration that trainers on GPUs give it."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import pytest

from workers.records.specs import GroupSpec

# Offloaded weights need ZeRO-3; the plan refuses the others.
SETTINGS = [
    (stage, dtype, offload)
    for stage, dtype, offload in itertools.product(
        (1, 2, 3), ("float32", "bfloat16"), ("none", "optimizer", "parameters")
    )
    if offload != "parameters" or stage == 3
]
ELEMENTS = 70_553_706_496


@pytest.fixture(scope="module")
def deepspeed_engine() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")  # deepspeed reads it during its import
        from workers.training import deepspeed_engine
    return deepspeed_engine


def built(engine: ModuleType, stage: int, dtype: Any, offload: Any, elements: int) -> Any:
    """What deepspeed reads from the configuration."""
    from deepspeed.runtime.config import DeepSpeedConfig

    group = GroupSpec(stage, dtype, "cuda", 1, 60.0, 1 << 20, 0, offload=offload)
    return DeepSpeedConfig(engine.engine_config(elements, 0.7, group))


def test_there_are_as_many_settings_as_the_plan_lets_through() -> None:
    assert len(SETTINGS) == 14


@pytest.mark.parametrize(("stage", "dtype", "offload"), SETTINGS)
def test_deepspeed_reads_what_was_meant(deepspeed_engine, stage, dtype, offload) -> None:
    read = built(deepspeed_engine, stage, dtype, offload, ELEMENTS)
    zero = read.zero_config
    assert read.zero_optimization_stage == stage
    assert read.gradient_clipping == 0.7
    assert read.managed_gradient_accumulation is False
    assert (read.zero_allow_untested_optimizer, read.zero_force_ds_cpu_optimizer) == (True, False)
    assert read.bfloat16_config.enabled == (dtype == "bfloat16")
    assert read.grad_accum_dtype == ("fp32" if dtype == "bfloat16" else None)
    assert (zero.overlap_comm, zero.reduce_bucket_size) == (False, 500_000_000)
    if stage == 3:
        assert zero.param_persistence_threshold == 10_000
        assert zero.prefetch_bucket_size == 50_000_000
    for part, kept in (
        (zero.offload_optimizer, offload != "none"), (zero.offload_param, offload == "parameters")
    ):  # fmt: skip
        assert (part is not None) == kept
        if kept:
            assert (part.device, part.pin_memory) == ("cpu", True)


def test_buckets_are_no_larger_than_the_model(deepspeed_engine) -> None:
    zero = built(deepspeed_engine, 3, "float32", "none", 1_000).zero_config
    assert (zero.reduce_bucket_size, zero.prefetch_bucket_size) == (1_000, 1_000)

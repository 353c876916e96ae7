"""Disk space of a run, in bytes counted by hand."""

from __future__ import annotations

import pytest
from composing import composed

from orchestrator.planning.disk_space import DiskSpace, disk_space
from orchestrator.planning.plan import make_plan


def space(*arguments: str) -> DiskSpace | None:
    config = composed("+experiment=pocket_tiny", *arguments)
    return disk_space(config, make_plan(config))


def parameters() -> int:
    plan = make_plan(composed("+experiment=pocket_tiny"))
    assert plan.size is not None
    return plan.size.parameters


def test_a_checkpoint_has_master_weights_and_two_moments_of_both_trainers() -> None:
    found = space("run.checkpoint.keep_last=3", "algorithm.ema_decay=0")
    assert found is not None
    assert found.checkpoint == 2 * 12 * parameters()
    assert found.checkpoints == 4 * found.checkpoint  # three are kept, and one is written
    assert found.total == found.checkpoints + found.models


def test_the_moving_average_is_saved_for_the_policy_alone() -> None:
    without, averaged = space("algorithm.ema_decay=0"), space("algorithm.ema_decay=0.9")
    assert without is not None
    assert averaged is not None
    assert averaged.checkpoint - without.checkpoint == 4 * parameters()


def test_the_models_of_bf16_trainers_take_half() -> None:
    whole, half = space(), space("trainer.precision=bf16", "rollout.parity_tolerance=0.3")
    assert whole is not None
    assert half is not None
    assert whole.models == 2 * half.models


@pytest.mark.parametrize("experiment", ["sft"])
def test_nothing_is_said_of_models_that_cannot_be_read(experiment: str) -> None:
    config = composed(
        f"+experiment={experiment}", "model.checkpoints.base=B", "data.files.demonstrations=D"
    )
    assert disk_space(config, make_plan(config)) is None

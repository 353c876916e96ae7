import dataclasses

import pytest

from workers.records.specs import OptimizerSpec
from workers.training.schedule import learning_rate

SPEC = OptimizerSpec(8.0, (0.9, 0.95), 1e-5, 0.0, 1.0, "constant", 4, 0.25, 12)


def rates(schedule: str, **changes: float) -> list[float]:
    spec = dataclasses.replace(SPEC, schedule=schedule, **changes)
    return [learning_rate(spec, step) for step in (0, 1, 3, 4, 8, 12, 99)]


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("constant", [2, 4, 8, 8, 8, 8, 8]),
        ("linear", [2, 4, 8, 8, 5, 2, 2]),
        ("cosine", [2, 4, 8, 8, 5, 2, 2]),
    ],
)
def test_schedules(schedule: str, wanted: list[float]) -> None:
    assert rates(schedule) == pytest.approx(wanted)


def test_one_step_after_the_warm_up_is_the_last() -> None:
    spec = dataclasses.replace(SPEC, schedule="linear", total_steps=5)
    assert [learning_rate(spec, step) for step in (3, 4, 5, 6)] == [8, 8, 2, 2]
    spec = dataclasses.replace(SPEC, schedule="linear", total_steps=4)
    assert [learning_rate(spec, step) for step in (3, 4, 5)] == [8, 8, 2]


def test_a_cosine_falls_late() -> None:
    spec = dataclasses.replace(SPEC, schedule="cosine")
    assert learning_rate(spec, 6) == pytest.approx(8 - 6 * (1 - 0.5**0.5) / 2)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert rates("linear", warmup_steps=0)[0] == 8


def test_a_warm_up_can_start_above_zero() -> None:
    # From a quarter of 8, in four equal rises; the paper's is from .1 over ten iterations.
    spec = dataclasses.replace(SPEC, warmup_start_ratio=0.25)
    assert [learning_rate(spec, step) for step in range(6)] == pytest.approx([2, 3.5, 5, 6.5, 8, 8])

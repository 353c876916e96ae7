import dataclasses

import pytest

from workers.schedule import learning_rate
from workers.specs import OptimizerSpec

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


def test_a_cosine_falls_late() -> None:
    spec = dataclasses.replace(SPEC, schedule="cosine")
    assert learning_rate(spec, 6) == pytest.approx(8 - 6 * (1 - 0.5**0.5) / 2)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert rates("linear", warmup_steps=0)[0] == 8

"""Which texts of an iteration are saved."""

from __future__ import annotations

import pytest

from orchestrator.command_line.composition import compose_run
from orchestrator.config.samples import SamplesConfig
from workers.errors import ConfigError, UnknownKeyError


@pytest.mark.parametrize(
    ("most", "trained", "dropped", "chosen"),
    [
        (4, [0, 1, 2, 3, 4], [], [0, 1, 2, 3]),
        (4, [0, 2, 4, 6], [1, 3, 5, 7], [0, 1, 2, 3]),
        (4, [0, 2, 4, 6], [9], [0, 2, 4, 9]),
        (4, [8], [0, 1, 2, 3, 4], [0, 1, 2, 8]),
        (3, [0, 2, 4], [1, 3], [0, 1, 2]),
        (1, [5], [1], [5]),
        (0, [0], [1], []),
        (9, [2], [1], [1, 2]),
        (4, [], [3, 4], [3, 4]),
    ],
)
def test_dropped_texts_take_up_to_half(
    most: int, trained: list[int], dropped: list[int], chosen: list[int]
) -> None:
    assert SamplesConfig(per_iteration=most).chosen(trained, dropped) == chosen


def test_all_keeps_every_text() -> None:
    config = SamplesConfig(per_iteration=0, all=True)
    assert config.chosen([1, 3], [0, 2]) == [0, 1, 2, 3]
    assert not config.none
    assert SamplesConfig(per_iteration=0).none


def test_the_keys_are_checked_and_the_earlier_name_leads_to_them() -> None:
    assert compose_run(["+experiment=pocket"]).samples.per_iteration == 8
    with pytest.raises(ConfigError, match=r"samples\.per_iteration"):
        compose_run(["+experiment=pocket", "samples.per_iteration=-1"])
    with pytest.raises(UnknownKeyError) as caught:
        compose_run(["+experiment=pocket", "algorithm.rollouts_kept=3"])
    assert "samples.per_iteration" in caught.value.fix

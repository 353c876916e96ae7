"""What happens when Ray itself does not come up."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
from composing import composed

from orchestrator import cluster
from orchestrator.plan import make_plan
from workers.errors import DeadlineError

_SLOW = "The current node timed out during startup. This could happen because ..."


def _start(seconds: float) -> None:
    config = composed("+experiment=pocket")
    cluster.start_cluster(config.cluster, make_plan(config).layout, seconds)


def test_a_start_that_stays_slow_ends_by_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def slow(**options: Any) -> NoReturn:
        tries.append(options["_temp_dir"])
        raise Exception(_SLOW)

    monkeypatch.setattr(cluster.ray, "init", slow)
    monkeypatch.setattr(cluster.time, "monotonic", lambda: 40.0 * len(tries))
    with pytest.raises(DeadlineError, match="did not start within 100 s"):
        _start(100.0)
    assert len(tries) == 3  # after 40, 80 and 120 seconds
    assert len(set(tries)) == 3  # each in a folder of its own


def test_other_failures_of_ray_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def broken(**options: Any) -> NoReturn:
        tries.append(1)
        raise RuntimeError("version mismatch")

    monkeypatch.setattr(cluster.ray, "init", broken)
    with pytest.raises(RuntimeError, match="version mismatch"):
        _start(100.0)
    assert tries == [1]

"""The age of a process does not depend on the clock that people set."""

from __future__ import annotations

import time

import psutil
import pytest

from orchestrator.process.age import process_seconds


def test_the_age_of_a_process_does_not_hang_on_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    by_clock = time.time() - psutil.Process().create_time()  # noqa: TID251
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert process_seconds() == pytest.approx(by_clock, abs=2.0)

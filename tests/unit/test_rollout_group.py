"""What the engines' handle remembers of engines that are gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import roles
from orchestrator.roles import Launch, RolloutGroup
from orchestrator.waiting import Position


class Engines(RolloutGroup):
    """No processes."""

    def _make(self, rank: int) -> Any:
        return rank


def test_engines_that_were_ended_owe_and_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(roles.ray, "kill", lambda actor, **_: ended.append(actor))
    launch = Launch(options=lambda _: {}, workers=2, start_seconds=1, call_seconds=1,
                    position=Position())  # fmt: skip
    group = Engines(launch)
    group._open = [SimpleNamespace(owed=[1])]  # type: ignore[list-item]
    assert group.sampling
    group.kill()
    assert ended == [0, 1]
    assert not group.sampling
    assert launch.account.close() == {}  # asks every group that it has ever known

"""What the engines' handle remembers of engines that are gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.roles.group import Launch
from orchestrator.roles.rollout_group import RolloutGroup
from orchestrator.supervision.backend import Call
from orchestrator.supervision.pending import Position


class Engines(RolloutGroup):
    """No processes."""

    def _make(self, rank: int) -> Any:
        return rank


def group_of_two(backend: Any = None) -> Engines:
    launch = Launch(backend=backend, options=lambda _: {}, workers=2, start_seconds=1,
                    call_seconds=1, position=Position())  # fmt: skip
    return Engines(launch)


def test_abandoned_generations_are_interrupted_and_owe_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = group_of_two()
    group._open = [SimpleNamespace(owed=[1])]  # type: ignore[list-item]
    asked: list[str] = []

    def note(call: str | Call, *_: Any, **__: Any) -> Any:
        asked.append(call if isinstance(call, str) else call.verb)
        return SimpleNamespace(result=lambda: None)

    monkeypatch.setattr(group, "_all", note)
    group.abandon()
    assert asked == ["pause", "forget"]
    assert not group.sampling


def test_engines_that_were_ended_owe_and_tell_nothing() -> None:
    ended: list[int] = []
    group = group_of_two(SimpleNamespace(end=ended.append))
    group._open = [SimpleNamespace(owed=[1])]  # type: ignore[list-item]
    assert group.sampling
    group.kill()
    assert ended == [0, 1]
    assert not group.sampling
    assert group._launch.account.close() == {}  # asks every group that it has ever known

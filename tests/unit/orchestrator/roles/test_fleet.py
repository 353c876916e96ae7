"""Which groups are ended when workers are lost, and which are kept."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config.cluster import RoleName
from orchestrator.config.schema import Config
from orchestrator.roles.fleet import Fleet
from orchestrator.supervision.pending import Position
from orchestrator.supervision.worker_life import Status
from orchestrator.telemetry.role_time import Account
from workers.errors import RehearsalError, RoleDiedError, RoleHungError
from workers.process.heartbeat import Pulse
from workers.records.generation import EngineState


class Line:
    """A process that lives."""

    def ask(self) -> None:
        pass

    def answer(self) -> Pulse | None:
        return Pulse(verb="", beats=0, quiet_seconds=0.0, spans=())

    def stacks(self, seconds: float) -> str:
        return ""


class Group:
    size = 2
    ranks = (0, 1)

    def __init__(self, role: str) -> None:
        self.role = role
        self.sampling = False
        self.unfinished = 7
        self.stuck: RehearsalError | None = None
        self.asked: list[str] = []

    def name(self, rank: int) -> str:
        return f"{self.role} rank {rank}"

    def abandon(self) -> None:
        self.asked.append("abandon")
        self.sampling = False
        if self.stuck is not None:
            raise self.stuck

    def kill(self) -> None:
        self.asked.append("kill")

    def states(self) -> Any:
        assert not self.sampling, "would wait for what is sampled"
        return self

    def result(self) -> list[EngineState]:
        return [EngineState(1, "admitted")] * 2


@pytest.fixture
def fleet() -> Fleet:
    cluster: Any = None
    fleet = Fleet(Config(), cluster, Position(), Account())
    for name in (RoleName.rollout, RoleName.policy):
        fleet._groups[name] = group = Group(name.value)
        names = [group.name(rank) for rank in range(2)]
        for each in names:
            fleet.watch.add(each, Line())
        fleet.watch.started(names, well=True)
    return fleet


def groups(fleet: Fleet) -> tuple[Any, Any]:
    return fleet._groups[RoleName.rollout], fleet._groups[RoleName.policy]


def test_a_census_counts_what_is_there_and_starts_nothing(fleet: Fleet) -> None:
    assert fleet.census() == ({"rollout": 2, "policy": 2}, 7)
    fleet.release(RoleName.rollout)
    assert fleet.census() == ({"policy": 2}, 0)
    assert not fleet.holds(RoleName.rollout)


def test_engines_that_sample_are_interrupted_and_kept(fleet: Fleet) -> None:
    rollout, policy = groups(fleet)
    rollout.sampling = True
    fleet.watch.died("policy rank 1", "signal 9")
    assert fleet.replace_lost() == ["policy rank 1"]
    assert (rollout.asked, policy.asked) == (["abandon"], ["kill"])
    assert fleet.holds(RoleName.rollout)
    assert not fleet.holds(RoleName.policy)


def test_engines_that_cannot_be_interrupted_are_lost_too(fleet: Fleet) -> None:
    rollout, _ = groups(fleet)
    rollout.sampling, rollout.stuck = True, RoleHungError("it hangs", where="rollout rank 0")
    fleet.watch.died("policy rank 1", "signal 9")
    lost = ["policy rank 1", "rollout rank 0", "rollout rank 1"]
    assert fleet.replace_lost() == lost
    assert rollout.asked == ["abandon", "kill"]
    assert not fleet.holds(RoleName.rollout)
    assert fleet.watch.life("rollout rank 0").status is Status.restarting


def test_trainers_that_stand_still_are_ended_before_engines_are_asked(fleet: Fleet) -> None:
    rollout, policy = groups(fleet)

    def states() -> Any:
        assert policy.asked == ["kill"], "engines may wait for what it was sending"
        raise RoleHungError("it hangs", where="rollout rank 1")

    rollout.states = states
    fleet.watch.died("policy rank 0", "it gave no sign of life")
    assert fleet.replace_lost() == ["policy rank 0", "rollout rank 0", "rollout rank 1"]
    assert rollout.asked == ["kill"]


def test_a_lost_engine_takes_its_group_along_unasked(fleet: Fleet) -> None:
    rollout, policy = groups(fleet)
    rollout.sampling = True
    fleet.watch.died("rollout rank 0", "signal 9")
    assert fleet.replace_lost() == ["rollout rank 0"]
    assert (rollout.asked, policy.asked) == (["kill"], [])


def test_going_back_for_another_reason_interrupts_too(fleet: Fleet) -> None:
    rollout, _ = groups(fleet)
    fleet.abandon()
    assert rollout.asked == []  # nothing is sampled
    rollout.sampling = True
    fleet.abandon()
    assert rollout.asked == ["abandon"]
    rollout.sampling, rollout.stuck = True, RoleDiedError("signal 9", where="rollout rank 0")
    fleet.abandon()
    assert not fleet.holds(RoleName.rollout)


def test_a_released_group_is_ended_and_no_longer_watched(fleet: Fleet) -> None:
    rollout, policy = groups(fleet)
    fleet.release(RoleName.policy, RoleName.critic)  # there is no critic to end
    assert (rollout.asked, policy.asked) == ([], ["kill"])
    assert not fleet.holds(RoleName.policy)
    fleet.watch.died("policy rank 1", "signal 9")  # it no longer knows this worker
    assert fleet.replace_lost() == []

"""Engines that are lost: their peers do their work at once, and they come back behind it."""

from __future__ import annotations

from typing import Any

import pytest
from engine_world import SAMPLING, Make, ids, requests
from engine_world import make as make

from orchestrator.roles import rollout_group
from workers.errors import RoleDiedError
from workers.records.generation import Delivery


def test_the_others_are_asked_at_once_and_nobody_waits_for_the_start(make: Make) -> None:
    world, group = make(3)
    world.mute.add("start 1")  # never answers
    generating = group.generate(requests(6), SAMPLING, 7)
    world.die(1)
    world.finish(0)
    world.finish(2)
    world.events.clear()
    answers = iter([0, 2])
    ask = world.sample
    world.sample = lambda rank, call: (ask(rank, call), world.finish(next(answers)))[0]  # type: ignore[method-assign]
    result = generating.result()
    assert world.events == [
        "lost rollout rank 1, 0 replies", "make 1", "start 1",
        "ask 0 for [1] of version 7", "ask 2 for [4] of version 7",
    ]  # fmt: skip
    assert ids(result) == [0, 30, 10, 40, 20, 50]  # as if no engine had been lost
    assert group.ranks == [0, 2]


def test_an_engine_that_stands_again_joins_when_all_get_weights_and_not_before(make: Make) -> None:
    world, group = make()
    generating = group.generate(requests(2), SAMPLING, 7)
    world.die(1)
    world.finish(0)
    group._recover(1, RoleDiedError("gone", where="rollout rank 1"))
    group._watch.tick()
    assert group._returning.standing == [1]
    assert group.ranks == [0]
    world.finish(0)
    assert ids(generating.result()) == [0, 10]
    group.join()
    assert group.ranks == [0, 1]
    assert [info.rank for info in group.infos] == [0, 1]


def test_or_before_the_next_generation_where_what_the_peers_serve_is_at_hand(make: Make) -> None:
    world, group = make()
    world.die(1)
    group._recover(1, RoleDiedError("gone", where="rollout rank 1"))
    group._watch.tick()
    world.events.clear()
    group.generate(requests(2), SAMPLING, 7)
    assert world.events == ["load 1", "ask 0 for [0] of version 7", "ask 1 for [1] of version 7"]


def test_nor_while_the_weights_it_needs_are_gone(make: Make) -> None:
    world, group = make()
    group._served = rollout_group._Served("", 7)  # came from a trainer, which has moved on
    generating = group.generate(requests(2), SAMPLING, 7)
    world.die(1)
    world.finish(0)
    group._deal_again("rollout rank 1", RoleDiedError("gone", where="rollout rank 1"))
    world.finish(0)  # its peer holds them still
    assert ids(generating.result()) == [0, 10]
    group._watch.tick()
    group.generate(requests(2, 4), SAMPLING, 7)
    assert world.events[-2:] == ["ask 0 for [4] of version 7", "ask 0 for [5] of version 7"]


def test_the_only_engine_is_waited_for_and_gets_back_what_it_owed(make: Make) -> None:
    world, group = make(1)
    generating = group.generate(requests(2), SAMPLING, 7)
    world.die(0)
    world.events.clear()
    ask = world.sample
    world.sample = lambda rank, call: (ask(rank, call), world.finish(rank))[0]  # type: ignore[method-assign]
    assert ids(generating.result()) == [0, 10]
    assert world.events == [
        "lost rollout rank 0, 0 replies", "make 0", "start 0", "load 0",
        "ask 0 for [0, 1] of version 7",
    ]  # fmt: skip


def test_the_only_engine_is_not_made_again_for_weights_that_are_gone(make: Make) -> None:
    world, group = make(1)
    group._served = rollout_group._Served("", 7)
    generating = group.generate(requests(2), SAMPLING, 7)
    world.die(0)
    with pytest.raises(RoleDiedError, match="process of rollout rank 0 ended"):
        generating.result()
    assert "make 0" not in world.events


def test_what_ends_again_and_again_rests_for_longer_and_is_then_given_up(make: Make) -> None:
    world, group = make(2, restarts=3)
    world.mute.add("start 1")
    world.die(1)
    group._recover(1, RoleDiedError("gone", where="rollout rank 1"))
    made: list[float] = [world.now]
    for _ in range(3):
        world.die(1)
        lost = world.now
        seen = world.events.count("make 1")
        for _ in range(100):
            group._watch.tick()
            if world.events.count("make 1") > seen or "without rollout rank 1" in world.events:
                break
            world.now += 0.25
        made.append(world.now - lost)
    assert [round(seconds) for seconds in made[1:3]] == [2, 4]
    assert made[3] < 2  # given up without a rest
    assert world.events.count("make 1") == 3
    assert world.events[-1] == "without rollout rank 1"
    generating = group.generate(requests(4), SAMPLING, 7)
    world.finish(0)
    world.finish(0)
    assert ids(generating.result()) == [0, 20, 10, 30]  # as of two engines


def test_no_loss_is_survived_where_the_configuration_allows_none(make: Make) -> None:
    world, group = make(2, restarts=0)
    generating = group.generate(requests(2), SAMPLING, 7)
    world.die(1)
    with pytest.raises(RoleDiedError, match="rollout rank 1 is not restarted again"):
        generating.result()


def test_when_the_last_one_is_used_up_the_run_ends(make: Make) -> None:
    world, group = make(1, restarts=1)
    world.mute.add("start 0")
    generating = group.generate(requests(2), SAMPLING, 7)
    world.die(0)
    die, world.wait = world.wait, lambda *a, **k: (world.die(0), die(*a, **k))[1]  # type: ignore[method-assign]
    with pytest.raises(RoleDiedError, match="rollout rank 0 is not restarted again"):
        generating.result()


def test_under_a_pause_others_are_asked_once_the_new_weights_are_there(make: Make) -> None:
    world, group = make(2, interruptible=True)
    group.generate(requests(4), SAMPLING, 7)
    world.die(1)
    world.mute |= {"start 1", "pause 1"}
    world.events.clear()
    pausing = group.pause()
    world.die(1)
    pausing.result()
    assert world.events == [
        "pause 0", "pause 1", "lost rollout rank 1, 0 replies", "make 1", "start 1",
    ]  # fmt: skip
    world.events.clear()
    group._served = rollout_group._Served("", 8)
    group.resume(8)
    assert world.events == [
        "proceed 0 with call 0 under version 8", "ask 0 for [1, 3] of version 8",
    ]  # fmt: skip


def test_where_batches_join_those_of_a_lost_engine_do_too(make: Make) -> None:
    world, group = make(2, join_running=True)
    first = group.generate(requests(2), SAMPLING, 7)
    group.generate(requests(2, 4), SAMPLING, 7)
    world.die(1)
    world.events.clear()
    group._deal_again("rollout rank 1", RoleDiedError("gone", where="rollout rank 1"))
    assert [e for e in world.events if "to 0" in e or "ask" in e] == [
        "announce [1] to 0", "ask 0 for [1] of version 7",
        "announce [5] to 0", "ask 0 for [5] of version 7",
    ]  # fmt: skip
    assert first.owed == [0]


def test_a_loss_is_noticed_and_dealt_with_while_others_are_waited_for(make: Make) -> None:
    world, group = make()
    group.generate(requests(2), SAMPLING, 7, Delivery())
    group._watch.died("rollout rank 1", "it gave no sign of life")
    world.events.clear()
    group._watch.tick(["rollout rank 1"])  # who waits for it looks after it
    assert world.events == []
    group._watch.tick(["policy rank 0"])
    assert world.events == [
        "lost rollout rank 1, 0 replies", "make 1", "start 1", "ask 0 for [1] of version 7",
    ]  # fmt: skip


def test_what_a_lost_engine_had_given_and_nobody_took_is_counted_and_made_again(make: Make) -> None:
    world, group = make()
    generating = group.generate(requests(2), SAMPLING, 7)
    world.finish(1)
    group._deal_again("rollout rank 1", RoleDiedError("gone", where="rollout rank 1"))
    assert "lost rollout rank 1, 1 replies" in world.events
    world.finish(0)
    world.finish(0)
    assert ids(generating.result()) == [0, 10]


def test_engines_lost_in_a_sync_are_left_out_and_not_waited_for(make: Make) -> None:
    world, group = make(3)
    world.mute.add("start 1")
    world.noticed.add(1)
    assert group.replace_lost() == ["rollout rank 1"]
    assert world.events == ["lost rollout rank 1, 0 replies", "make 1", "start 1"]
    assert group.ranks == [0, 2]


def test_when_all_are_lost_in_a_sync_the_first_that_stands_takes_part_in_the_next_try(
    make: Make,
) -> None:
    world, group = make(2)
    world.mute.add("start 0")
    world.noticed |= {0, 1}
    assert group.replace_lost() == ["rollout rank 0", "rollout rank 1"]
    assert group.ranks == [1]
    assert "load 1" not in world.events  # the sync brings the weights


def test_a_loss_in_a_sync_ends_typed_where_no_loss_is_allowed(make: Make) -> None:
    world, group = make(2, restarts=0)
    world.noticed.add(1)
    with pytest.raises(RoleDiedError, match="rollout rank 1 is not restarted again"):
        group.replace_lost()


def test_what_was_begun_under_weights_that_are_gone_is_for_the_caller(make: Make) -> None:
    world, group = make(2)
    group.generate(requests(2), SAMPLING, 7)
    world.noticed.add(1)
    assert group.replace_lost() == []
    assert group.ranks == [0, 1]


def test_unless_it_may_begin_again_under_the_new_ones(make: Make) -> None:
    world, group = make(2, interruptible=True)
    world.mute.add("start 1")
    group.generate(requests(2), SAMPLING, 7)
    group.pause().result()
    world.noticed.add(1)
    assert group.replace_lost() == ["rollout rank 1"]
    world.events.clear()
    group.resume(8)
    assert world.events == [
        "proceed 0 with call 0 under version 8", "ask 0 for [1] of version 8",
    ]  # fmt: skip


def test_engines_that_share_memory_with_trainers_start_only_while_those_rest(make: Make) -> None:
    world, group = make(2, sleep=True)
    world.die(1)
    group._recover(1, RoleDiedError("gone", where="rollout rank 1"))
    for _ in range(3):
        group._watch.tick(["policy rank 0"])
    assert "make 1" not in world.events
    group.join()  # of a sync, or a load: trainers rest
    assert group.ranks == [0, 1]


def test_a_group_that_is_made_again_has_no_engine_that_was_given_up(make: Make) -> None:
    world, group = make(2, restarts=1)
    world.mute.add("start 1")
    for _ in range(2):
        world.die(1)
        group._watch.died("rollout rank 1", "signal 9")
        group._watch.tick()
        group._watch.tick()
    assert "without rollout rank 1" in world.events
    group.restart(group._spec, 9).result()  # type: ignore[arg-type]
    assert group.ranks == [0]
    group.generate(requests(2), SAMPLING, 9)
    assert world.events[-2:] == ["ask 0 for [0] of version 9", "ask 0 for [1] of version 9"]


def test_an_engine_that_is_lost_while_it_is_given_weights_is_lost_once(make: Make) -> None:
    world, group = make(2)
    world.die(1)
    group._recover(1, RoleDiedError("gone", where="rollout rank 1"))
    group._watch.tick()
    world.mute.add("load 1")

    def fall() -> None:
        world.noticed.add(1)
        group._watch._watched["rollout rank 1"].due = 0.0

    world.before["load 1"] = fall
    world.events.clear()
    generating = group.generate(requests(2), SAMPLING, 7)
    assert world.events == [
        "load 1", "lost rollout rank 1, 0 replies", "ask 0 for [0] of version 7",
        "ask 0 for [1] of version 7",
    ]  # fmt: skip
    world.finish(0)
    world.finish(0)
    assert ids(generating.result()) == [0, 10]


def test_both_of_two_engines_lost_one_after_the_other(make: Make) -> None:
    world, group = make(2)
    generating = group.generate(requests(4), SAMPLING, 7)
    world.die(1)
    group._deal_again("rollout rank 1", RoleDiedError("gone", where="rollout rank 1"))
    world.finish(0)
    world.die(0)  # before it gave what it had taken over, and after its own
    world.events.clear()
    ask = world.sample
    world.sample = lambda rank, call: (ask(rank, call), world.finish(rank))[0]  # type: ignore[method-assign]
    assert ids(generating.result()) == [0, 20, 10, 30]
    assert group.ranks == [1]
    assert world.events[:4] == ["lost rollout rank 0, 0 replies", "make 0", "start 0", "load 1"]


def test_an_extra_engine_starts_when_there_is_room_and_takes_its_share_of_what_follows(
    make: Make,
) -> None:
    world, group = make(1, most=3)
    group.generate(requests(2), SAMPLING, 7)
    group._watch.tick()
    assert world.events == ["ask 0 for [0, 1] of version 7"]  # no room yet
    world.finish(0)
    world.room |= {2}
    world.events.clear()
    group._watch.tick()
    group._watch.tick()
    assert world.events == ["make 2", "start 2"]
    assert group.ranks == [0]  # until it has weights
    world.events.clear()
    generating = group.generate(requests(4, 4), SAMPLING, 7)
    assert world.events == [
        "load 2", "ask 0 for [4, 6] of version 7", "ask 2 for [5, 7] of version 7",
    ]  # fmt: skip
    assert (group.ranks, group.size) == ([0, 2], 1)
    assert [info.rank for info in group.infos] == [0, 2]
    world.finish(0)
    world.finish(2)
    assert ids(generating.result()) == [40, 60, 50, 70]


def test_an_extra_engine_that_leaves_gives_its_place_back_and_its_sequences_are_sampled_by_others(
    make: Make,
) -> None:
    world, group = make(1, most=2)
    world.room |= {1}
    group._watch.tick()
    group._watch.tick()
    generating = group.generate(requests(4), SAMPLING, 7)
    world.finish(0)
    world.die(1)
    world.events.clear()
    ask = world.sample
    world.sample = lambda rank, call: (ask(rank, call), world.finish(rank))[0]  # type: ignore[method-assign]
    assert sorted(ids(generating.result())) == [0, 10, 20, 30]
    assert world.events == [
        "give back 1", "lost rollout rank 1, 0 replies", "ask 0 for [1, 3] of version 7",
    ]  # fmt: skip
    world.sample = ask  # type: ignore[method-assign]
    world.events.clear()
    group.generate(requests(2, 4), SAMPLING, 7)
    assert world.events == ["ask 0 for [4, 5] of version 7"]  # one request, not one per share


def test_extra_engines_that_come_and_go_too_often_are_given_up_and_end_no_run(make: Make) -> None:
    world, group = make(1, restarts=0, most=2)
    world.room |= {1}
    group._watch.tick()
    group._watch.tick()
    generating = group.generate(requests(2), SAMPLING, 7)
    world.die(1)
    world.finish(0)
    world.events.clear()
    ask = world.sample
    world.sample = lambda rank, call: (ask(rank, call), world.finish(rank))[0]  # type: ignore[method-assign]
    generating.result()
    world.room |= {1}
    group._watch.tick()
    assert world.events[-2:] == ["give back 1", "without rollout rank 1"]
    assert "make 1" not in world.events


def test_a_run_that_has_lost_its_engines_for_good_does_not_wait_for_room(make: Make) -> None:
    world, group = make(1, restarts=1, most=2)
    world.mute.add("start 0")
    generating = group.generate(requests(2), SAMPLING, 7)
    world.die(0)
    wait = world.wait
    world.wait = lambda *a, **k: (world.die(0), wait(*a, **k))[1]  # type: ignore[method-assign]
    with pytest.raises(RoleDiedError, match="rollout rank 0 is not restarted again"):
        generating.result()


def test_an_extra_engine_on_its_way_is_waited_for_and_its_failure_ends_the_wait(make: Make) -> None:
    world, group = make(1, restarts=1, most=2)
    world.mute |= {"start 0", "start 1"}
    world.room |= {1}
    group._watch.tick()
    assert world.events == ["make 1", "start 1"]
    generating = group.generate(requests(2), SAMPLING, 7)
    wait, begun = world.wait, world.now

    def dying(*args: Any, **keys: Any) -> Any:
        world.die(0)
        if world.now > begun + 20:
            world.room.clear()
            world.die(1)
        return wait(*args, **keys)

    world.die(0)
    world.wait = dying  # type: ignore[method-assign]
    with pytest.raises(RoleDiedError, match="rollout rank 0 is not restarted again"):
        generating.result()
    assert world.now > begun + 20


def test_the_places_of_extra_engines_are_given_back_with_the_group(make: Make) -> None:
    world, group = make(1, most=3)
    world.room |= {1}
    group._watch.tick()
    world.events.clear()
    group.kill()
    assert world.events == ["give back 1", "give back 2"]

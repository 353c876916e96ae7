"""What each verb of the rollout group asks of which engine, with which arguments."""

from __future__ import annotations

from typing import Any

import pytest
from engine_world import SAMPLING, Make, ids, requests
from engine_world import make as make

from workers.errors import RoleDiedError
from workers.records.generation import Delivery
from workers.records.weights import GroupAddress

OFFER: Any = "offer"


def test_a_checkpoint_is_loaded_by_all_under_its_version(make: Make) -> None:
    world, group = make(2)
    group.load_checkpoint("models/sft", 12).result()
    assert world.asked["load 0"] == world.asked["load 1"] == ("models/sft", 12)
    group.generate(requests(2), SAMPLING, 12)
    assert world.events[-1] == "ask 1 for [1] of version 12"


def test_an_engine_that_stands_again_takes_part_in_a_load(make: Make) -> None:
    world, group = make(2)
    world.die(1)
    group._recover(1, RoleDiedError("gone", where="rollout rank 1"))
    group._watch.tick()
    group.load_checkpoint("models/sft", 12).result()
    assert world.asked["load 1"] == ("models/sft", 12)


def test_a_restarted_engine_loads_what_its_peers_serve(make: Make) -> None:
    world, group = make(2)
    world.die(1)
    group._recover(1, RoleDiedError("gone", where="rollout rank 1"))
    group._watch.tick()
    group.generate(requests(2), SAMPLING, 7)
    assert world.asked["load 1"] == ("sft", 7)


def test_or_gets_it_from_the_trainer_that_holds_it(make: Make) -> None:
    world, group = make(2)
    group.admit(9).result()
    refreshed: list[tuple[int, int]] = []
    group.refresh = lambda rank, version: refreshed.append((rank, version))
    world.die(1)
    group._recover(1, RoleDiedError("gone", where="rollout rank 1"))
    group._watch.tick()
    group.generate(requests(2), SAMPLING, 9)
    assert refreshed == [(1, 9)]
    assert group.ranks == [0, 1]


def test_weights_are_received_by_the_engines_that_are_named_and_admitted_by_them(
    make: Make,
) -> None:
    world, group = make(3)
    group.receive_weights(OFFER, [2]).result()
    assert world.events == ["receive_weights 2"]
    assert world.asked["receive_weights 2"] == ("offer",)
    group.admit(9, [2]).result()
    assert (world.events[-1], world.asked["admit 2"]) == ("admit 2", (9,))
    world.events.clear()
    group.receive_weights(OFFER).result()
    group.admit(9).result()
    assert [world.asked[f"admit {rank}"] for rank in range(3)] == [(9,)] * 3


def test_an_engine_lost_between_two_versions_is_left_to_the_sync(make: Make) -> None:
    _, group = make(2)
    group.receive_weights(OFFER).result()
    group._watch.died("rollout rank 1", "it gave no sign of life")
    group._watch.tick(["policy rank 0"])
    assert group.ranks == [0, 1]  # the transaction of the sync finds and handles the loss
    assert group.replace_lost() == ["rollout rank 1"]


def test_a_load_ends_the_time_between_two_versions(make: Make) -> None:
    _, group = make(2)
    group.receive_weights(OFFER).result()
    group.load_checkpoint("models/sft", 12).result()
    group._watch.died("rollout rank 1", "it gave no sign of life")
    group._watch.tick(["policy rank 0"])
    assert group.ranks == [0]


def test_an_engine_lost_while_another_gets_what_its_peers_serve_is_noticed(make: Make) -> None:
    _, group = make(3)
    group.receive_weights(OFFER, [2]).result()  # the others serve on
    group._watch.died("rollout rank 1", "it gave no sign of life")
    group._watch.tick(["policy rank 0"])
    assert group.ranks == [0, 2]


@pytest.mark.parametrize(("engines", "width"), [(3, 1), (3, 4), (1, 2)])
def test_ranks_of_the_transfer_group_follow_each_other(
    make: Make, engines: int, width: int
) -> None:
    world, group = make(engines)
    address = GroupAddress("host", 5000, 1 + engines * width)  # the sender is rank 0
    group.connect(address).result()
    found = [world.asked[f"connect {rank}"] for rank in range(engines)]
    assert found == [(address, 1 + rank * width) for rank in range(engines)]
    assert all(isinstance(first, int) for _, first in found)


def test_a_probe_asks_every_engine_or_those_that_are_named(make: Make) -> None:
    world, group = make(2)
    group.probe([(5, 6)], 4, 0.5, 8)
    assert world.asked["probe 0"] == world.asked["probe 1"] == ([(5, 6)], 4, 0.5, 8)
    world.events.clear()
    group.probe([(5, 6)], 4, 0.5, 8, [1])
    assert world.events == ["probe 1"]


def test_engines_import_before_they_start(make: Make) -> None:
    world, group = make(2)
    group.prepare("vllm").result()
    assert world.asked["prepare 0"] == world.asked["prepare 1"] == ("vllm",)


def test_an_engine_starts_with_its_specification_and_version(make: Make) -> None:
    world, group = make(2)
    assert world.asked["start 1"] == (group._spec, 7)
    assert [info.rank for info in group.infos] == [0, 1]


def test_engines_sleep_if_the_specification_says_so_and_none_samples(make: Make) -> None:
    world, group = make(2)
    group.sleep().result()
    assert world.events == []
    world, group = make(2, sleep=True)
    generating = group.generate(requests(2), SAMPLING, 7)
    world.events.clear()
    group.sleep().result()
    assert world.events == []  # they sample
    world.finish(0)
    world.finish(1)
    assert ids(generating.result()) == [0, 10]
    group.sleep().result()
    assert world.events == ["sleep 0", "sleep 1"]


@pytest.mark.parametrize("verb", ["pause", "load_checkpoint"])
def test_a_call_goes_on_without_an_engine_that_is_lost_in_it(make: Make, verb: str) -> None:
    world, group = make(2)
    name = {"load_checkpoint": "load"}.get(verb, verb)
    world.mute |= {f"{name} 1", "start 1"}
    pending = group.load_checkpoint("sft", 7) if name == "load" else group.pause()
    world.die(1)
    pending.result()
    assert group.ranks == [0]
    assert [info.rank for info in group.infos] == [0]


def test_what_engines_did_so_far_is_asked_of_those_that_sample(make: Make) -> None:
    world, group = make(2)
    group.generate(requests(1), SAMPLING, 7)
    world.events.clear()
    group._launch.account.open()
    group._launch.account.close()
    assert world.events == ["tell 0"]  # rank 1 has nothing to do


def test_a_sync_asks_engines_that_sample_before_it_takes_others_back(make: Make) -> None:
    world, group = make(2)
    group.generate(requests(1), SAMPLING, 7)
    world.events.clear()
    group.join()
    assert world.events == ["tell 0"]
    world.finish(0)
    _, idle = make(2)
    idle.join()


def test_one_part_holds_everything_unless_parts_are_wanted(make: Make) -> None:
    world, group = make(2)
    whole = group.generate(requests(4), SAMPLING, 7)
    world.finish(1)
    world.finish(0)
    assert [ids(part) for part in whole.parts()] == [[0, 20, 10, 30]]
    several = group.generate(requests(4), SAMPLING, 7, Delivery(part_sequences=2))
    world.finish(1)
    world.finish(0)
    once = [ids(part) for part in several.parts()]
    assert sorted(once) == [[0, 20], [10, 30]]
    assert [ids(part) for part in several.parts()] == once  # what has arrived stays


def test_times_that_come_with_the_parts_are_accounted(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, group = make(1)
    told: list[tuple[str, int]] = []
    account = group._launch.account
    monkeypatch.setattr(account, "told", lambda role, rank, _: told.append((role, rank)))
    generating = group.generate(requests(2), SAMPLING, 7)
    world.finish(0)
    generating.result()
    assert told == [("rollout", 0)]


def test_where_all_are_lost_a_sync_waits_for_the_first_that_stands(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, group = make(1)
    world.noticed.add(0)
    began, look = world.now, group._returning.look
    monkeypatch.setattr(group._returning, "look", lambda: look() if world.now > began + 9 else None)
    assert group.replace_lost() == ["rollout rank 0"]
    assert world.now > began + 9
    assert group.ranks == [0]


def test_an_engine_that_stood_and_is_lost_before_it_served_starts_again(make: Make) -> None:
    world, group = make(2)
    world.die(1)
    group._recover(1, RoleDiedError("gone", where="rollout rank 1"))
    group._watch.tick()
    assert group._returning.standing == [1]
    world.events.clear()
    group._watch.died("rollout rank 1", "signal 9")
    group._watch.tick()
    assert world.events == ["lost rollout rank 1, 0 replies"]
    assert group._returning.standing == []
    world.now += 10
    group._watch.tick()
    assert world.events[-2:] == ["make 1", "start 1"]


def test_a_start_that_fails_is_a_loss_and_ends_its_process(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, group = make(2)
    ended: list[int] = []
    monkeypatch.setattr(world, "end", ended.append)
    world.mute.add("start 1")
    world.die(1)
    group._recover(1, RoleDiedError("gone", where="rollout rank 1"))
    assert ended == [1]
    world.events.clear()
    world.die(1)
    group._watch.tick()
    assert world.events[0] == "lost rollout rank 1, 0 replies"
    assert ended == [1, 1]


def test_only_a_pause_and_questions_reach_an_engine_in_its_work(make: Make) -> None:
    world, group = make(2, interruptible=True)
    group.generate(requests(2), SAMPLING, 7)
    group.pause().result()
    group.join()
    group.resume(8)
    group.load_checkpoint("sft", 9).result()
    group.admit(9).result()
    assert world.beside == {"pause", "tell"}


def test_interrupted_generations_go_on_under_new_weights_and_give_the_rest(make: Make) -> None:
    world, group = make(2, interruptible=True)
    generating = group.generate(requests(4), SAMPLING, 7)
    group.pause().result()
    group.resume(8)
    world.finish(1)
    world.finish(0)
    assert ids(generating.result()) == [0, 20, 10, 30]
